"""The parts of a large image."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_comp.errors import LoraCompError
from lora_comp.parts import GRID, LATENT, in_parts


def parts_of(size, side=128):
    return in_parts(size, lambda rows, columns: lambda x_hat: x_hat.new_zeros(1), side)


@given(size=st.tuples(st.integers(1, 700), st.integers(1, 700)), side=st.sampled_from([128, 256, 1024]))
def test_every_pixel_belongs_to_one_part_and_no_part_is_too_large(size, side):
    count, parts = torch.zeros(size), parts_of(size, side)
    for part in parts:
        count[part.image] += 1
        height, width = count[part.image].shape
        assert max(height, width) <= side
        assert math.isclose(part.share * size[0] * size[1], height * width)
    assert (count == 1).all()


@given(size=st.tuples(st.integers(1, 700), st.integers(1, 700)))
def test_a_part_is_made_of_the_latents_about_it(size):
    """They begin at multiples of the coarsest windows, so that those lie as in the whole image."""
    for part in parts_of(size):
        for own, latents, image, extent in zip(part.own, part.latents, part.image, size, strict=True):
            assert latents.start * LATENT % GRID == 0
            assert latents.start * LATENT + own.start == image.start
            assert own.stop - own.start == image.stop - image.start
            assert latents.stop * LATENT >= min(image.stop + GRID, extent)


@pytest.mark.parametrize("side", [0, 100, 300])
def test_a_side_that_would_cut_through_windows_is_refused(side):
    with pytest.raises(LoraCompError, match=f"multiple of 128 pixels, as 256, not {side}"):
        parts_of((300, 300), side)


def test_a_image_of_ordinary_size_is_one_part():
    (part,) = in_parts((1024, 700), lambda rows, columns: lambda x_hat: x_hat.new_zeros(1))
    assert part.latents == (slice(0, 64), slice(0, 44)) and part.share == 1


def test_what_the_synthesis_makes_of_parts_is_nearly_what_it_makes_of_the_whole(codec, make_image):
    image = make_image(300, 420)
    with torch.no_grad():
        y_hat = codec.analyse(torch.nn.functional.pad(image[None], (0, 28, 0, 20), mode="replicate"))["y_hat"]
        whole = codec.g_s(y_hat)
        for part in parts_of((300, 420)):
            apart = codec.g_s(y_hat[(..., *part.latents)])[(..., *part.own)] - whole[(..., *part.image)]
            assert apart.square().mean() < 1e-3 * whole.var()
