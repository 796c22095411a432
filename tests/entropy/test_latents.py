"""Latents to bytes and back: exact, as short as the model says, and refused by a decoder that disagrees."""
import pytest
import torch

import lora_comp as lc
from lora_comp import api
from lora_comp.entropy.latents import CodedLatents, LatentCoder

SIZES = [(1, 1), (63, 65), (64, 64), (1, 300), (130, 200)]


def latents(codec, image):
    with torch.no_grad():
        return codec(api.pad(image))


@pytest.fixture(scope="module")
def coder(codec):
    return LatentCoder(codec)


@pytest.mark.parametrize("size", SIZES)
def test_the_decoder_gets_the_y_that_the_codec_rounded_to(codec, coder, picture, size):
    out = latents(codec, picture(*size))
    coded = coder.compress(out["y"], out["z"])
    y_hat = coder.decompress(coded, *out["z"].shape[2:])
    differ = (y_hat - out["y_hat"]).abs() > 1e-3  # a value on a boundary may round the other way in float64
    assert y_hat.shape == out["y_hat"].shape
    assert differ.float().mean() <= 1e-3
    assert (y_hat - out["y"]).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_as_long_as_the_likelihoods_say(codec, picture, size):
    out = latents(codec, picture(*size))
    estimated = sum(-p.double().log2().sum().item() for p in out["likelihoods"].values())
    real = 8 * len(lc.encode(picture(*size), codec, method="none").data)
    assert abs(real - estimated) <= 0.01 * estimated + 8 * 40


def test_what_was_decoded_codes_to_the_same_bytes(codec, coder, picture):
    out = latents(codec, picture(64, 64))
    coded = coder.compress(out["y"], out["z"])
    again = coder.compress(coder.decompress(coded, 1, 1), out["z_hat"])
    assert again == coded


@pytest.mark.parametrize("part", ["h_s.3.weight", "h_s.3.bias", "entropy_bottleneck.quantiles"])
def test_a_decoder_with_other_weights_says_so(codec, coder, picture, part):
    other = lc.load_codec("tic-s", 2, weights=None)
    other.load_state_dict(codec.state_dict())
    with torch.no_grad():
        other.get_parameter(part).mul_(1.1).add_(0.2)
    out = latents(codec, picture(64, 64))
    coded = coder.compress(out["y"], out["z"])
    if part == "entropy_bottleneck.quantiles":
        coded = CodedLatents(coded.z[::-1], coded.y, coded.symbols_crc)
    with pytest.raises(lc.BitstreamError):
        LatentCoder(other).decompress(coded, 1, 1)


def test_bytes_of_another_picture_are_told_by_the_checksum(codec, coder, picture):
    one, two = (coder.compress(out["y"], out["z"]) for out in (
        latents(codec, picture(64, 64)), latents(codec, picture(64, 64).flip(2))))
    with pytest.raises(lc.BitstreamError):
        coder.decompress(CodedLatents(one.z, two.y, one.symbols_crc), 1, 1)


def test_making_a_coder_leaves_the_codec_alone(codec):
    before = {k: (v.clone(), v.dtype, v.device) for k, v in codec.state_dict().items()}
    LatentCoder(codec)
    after = codec.state_dict()
    assert all(torch.equal(v, after[k]) and (d, e) == (after[k].dtype, after[k].device)
               for k, (v, d, e) in before.items())
