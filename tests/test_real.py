"""Real photographs through real files, with the weights that ship."""

import pytest

import lora_comp as lc
from lora_comp.api import bpp, pad
from lora_comp.data import load_data
from lora_comp.training.codec import bits

pytestmark = pytest.mark.data


@pytest.mark.parametrize("quality", [1, 2, 3, 4])
def test_kodak_through_files_of_the_size_that_the_codec_estimates(shared, quality):
    codec = lc.load_codec("tic-s", quality)
    for sample in load_data("folder", path=shared / "data" / "kodak", limit=8):
        coded = lc.encode(sample.image, codec, method="none")
        estimate = float(bits(codec(pad(sample.image[None], codec.stride))["likelihoods"])) / 8
        assert abs(len(coded.data) - estimate) <= 0.01 * estimate + 40
        decoded = lc.decode(coded.data)
        assert decoded.shape == sample.image.shape
        assert (decoded - sample.image).square().mean() < 0.01  # above 20 dB


def test_flowers_adapted_to_their_classifier_cost_less_than_plain(shared):
    data = load_data("folder", path=shared / "data" / "flowers", split="val", limit=3)
    codec, task = lc.load_codec("tic-s", 2), lc.load_task("cls", network="flowers")
    for sample in data:
        coded = lc.encode(sample.image, codec, task, steps=8, lr=1e-2)
        assert coded.loss_after < coded.loss_before
        measured = task.measure(lc.decode(coded.data), sample)
        assert coded.loss_after == pytest.approx(
            task.weight(2) * measured["feature_distance"] + bpp(coded.data, sample.image.shape[1:]), rel=1e-4
        )
