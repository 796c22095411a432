"""tic-v: one set of weights, any quality, and files that say which."""

import pytest
import torch

import lora_comp as lc
from lora_comp import bitstream
from lora_comp.codecs import at_quality, load_codecs
from lora_comp.codecs.tic_v import between


def test_qualities_are_interpolated_in_the_logarithm_of_the_gain(codec):
    two, three, between_them = (at_quality(codec, q).gain(codec.log_gain) for q in (2, 3, 2.5))
    torch.testing.assert_close(between_them, (two * three).sqrt())
    torch.testing.assert_close(between(6.0), torch.eye(6)[5:])


def test_a_batch_may_have_a_quality_for_each_image(codec, make_image):
    images = torch.stack([make_image(64, 64), make_image(64, 64).flip(2)])
    together = codec.at(torch.tensor([1.5, 6.0]))(images)
    for i, quality in enumerate((1.5, 6.0)):
        alone = codec.at(quality)(images[i : i + 1])
        torch.testing.assert_close(together["x_hat"][i : i + 1], alone["x_hat"], atol=1e-4, rtol=1e-4)


def test_qualities_are_held_in_sixteenths(codec):
    assert at_quality(codec, 3.3).quality == 3.3125
    assert [*map(str, load_codecs("tic-v", [1, 3.3, 6.0], None))] == ["1", "3.3125", "6"]


@pytest.mark.parametrize("quality", [0.9, 6.1, float("nan")])
def test_other_qualities_are_refused(codec, quality):
    with pytest.raises(lc.LoraCompError, match="quality must be a number from 1 to 6, not"):
        at_quality(codec, quality)


def test_a_codec_with_weights_for_each_rate_point_has_no_other(fixed_rate_codec):
    assert at_quality(fixed_rate_codec, 2) is fixed_rate_codec
    with pytest.raises(lc.LoraCompError, match="tic has other weights for every rate point: load it with quality=3"):
        at_quality(fixed_rate_codec, 3)


@pytest.mark.parametrize("quality", [1, 2.0625, 6])
def test_a_file_is_decoded_at_its_own_quality(codec, make_image, quality):
    there = at_quality(codec, quality)
    data = lc.encode(make_image(70, 130), there, method="none").data
    assert lc.info(data)["quality"] == quality
    assert torch.equal(lc.decode(data, codec), lc.decode(data, there))


def test_a_file_of_a_quality_that_does_not_exist_is_refused(codec, make_image):
    header, sections = bitstream.read(lc.encode(make_image(), codec, method="none").data)
    data = bitstream.write(bitstream.Header(**{**vars(header), "quality": 7.5}), sections)
    for given in (codec, None):
        with pytest.raises(lc.BitstreamError, match=r"a number from 1 to 6, not 7\.5"):
            lc.decode(data, given)


def test_rate_and_quality_rise_together(trained_codec, make_image):
    image = make_image(192, 256)
    files = [lc.encode(image, at_quality(trained_codec, q), method="none").data for q in (1, 2.5, 4, 5.5)]
    sizes = [len(data) for data in files]
    errors = [(lc.decode(data, trained_codec) - image).square().mean().item() for data in files]
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)


def test_adaptation_serves_any_quality(trained_codec, human, make_image):
    codec = at_quality(trained_codec, 1.5)
    coded = lc.encode(make_image(128, 128), codec, human, steps=3)
    assert coded.loss_after <= coded.loss_before
    decoded = lc.decode(coded.data, trained_codec)
    error = 255**2 * (decoded - make_image(128, 128)).square().mean().item()
    lmbda = (0.0018 * 0.0035) ** 0.5
    assert coded.loss_after == pytest.approx(lmbda * error + coded.bpp, rel=1e-4)
