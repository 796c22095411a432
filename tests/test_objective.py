"""The tiles of a large image."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_comp.codecs import Output
from lora_comp.codecs.tic import TIC
from lora_comp.errors import LoraCompError
from lora_comp.objective import GRID, tiles

LATENT = TIC.latent_stride


def tiles_of(size, side=128, codec=TIC):
    return tiles(size, codec, lambda rows, columns: lambda x_hat: x_hat.new_zeros(1), side)


@given(size=st.tuples(st.integers(1, 700), st.integers(1, 700)), side=st.sampled_from([128, 256, 1024]))
def test_every_pixel_belongs_to_one_tile_and_no_tile_is_too_large(size, side):
    count, found = torch.zeros(size), tiles_of(size, side)
    for tile in found:
        count[tile.image] += 1
        height, width = count[tile.image].shape
        assert max(height, width) <= side
        assert math.isclose(tile.share * size[0] * size[1], height * width)
    assert (count == 1).all()


@given(size=st.tuples(st.integers(1, 700), st.integers(1, 700)))
def test_a_tile_is_made_of_the_latents_about_it(size):
    """They begin at multiples of the coarsest windows, so that those lie as in the whole image."""
    for tile in tiles_of(size):
        for own, latents, image, extent in zip(tile.own, tile.latents, tile.image, size, strict=True):
            assert latents.start * LATENT % GRID == 0
            assert latents.start * LATENT + own.start == image.start
            assert own.stop - own.start == image.stop - image.start
            assert latents.stop * LATENT >= min(image.stop + GRID, extent)


@pytest.mark.parametrize("side", [0, 100, 300])
def test_a_side_that_would_cut_through_windows_is_refused(side):
    with pytest.raises(LoraCompError, match=f"multiple of 128 pixels, as 256, not {side}"):
        tiles_of((300, 300), side)


def test_an_image_of_ordinary_size_is_one_tile():
    (tile,) = tiles_of((1024, 700), side=1024)
    assert tile.latents == (slice(0, 64), slice(0, 44)) and tile.share == 1


def test_what_the_synthesis_makes_of_tiles_is_nearly_what_it_makes_of_the_whole(codec, make_image):
    image = make_image(300, 420)
    with torch.no_grad():
        y_hat = codec(torch.nn.functional.pad(image[None], (0, 28, 0, 20), mode="replicate"))["y_hat"]
        whole = codec.g_s(y_hat)
        for tile in tiles_of((300, 420)):
            apart = codec.g_s(y_hat[(..., *tile.latents)])[(..., *tile.own)] - whole[(..., *tile.image)]
            assert apart.square().mean() < 1e-3 * whole.var()


def test_features_are_cut_where_their_stride_has_the_tile():
    """Of a codec whose output has a position for every 8x8 pixels."""

    class Features(TIC):
        output = Output("layer3", 8)

    for tile, image in zip(tiles_of((300, 260), codec=Features), tiles_of((300, 260)), strict=True):
        assert tile.latents == image.latents
        for own, of_image, pixels in zip(tile.own, image.own, tile.image, strict=True):
            assert own.start * 8 == of_image.start
            assert own.stop - own.start == math.ceil((pixels.stop - pixels.start) / 8)
