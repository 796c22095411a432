"""Real photographs, encoded to files with the weights in the package."""

import pytest

import lora_comp as lc
from lora_comp.api import bpp, pad
from lora_comp.codecs import code_length
from lora_comp.data import load_data

pytestmark = pytest.mark.data


@pytest.mark.parametrize("quality", [1, 2, 3, 4])
def test_kodak_files_have_the_estimated_size(shared, quality):
    codec = lc.load_codec("tic-v", quality)
    for sample in load_data("folder", path=shared / "data" / "kodak", limit=8):
        coded = lc.encode(sample.image, codec, method="none")
        estimate = float(code_length(codec(pad(sample.image[None], codec.stride))["likelihoods"])) / 8
        assert abs(len(coded.data) - estimate) <= 0.01 * estimate + 40
        decoded = lc.decode(coded.data)
        assert decoded.shape == sample.image.shape
        assert (decoded - sample.image).square().mean() < 0.01  # above 20 dB


def test_adaptation_lowers_the_objective_on_flowers(shared):
    data = load_data("folder", path=shared / "data" / "flowers", split="val", limit=3)
    codec, task = lc.load_codec("tic-v", 2), lc.load_task("cls", network="flowers")
    for sample in data:
        coded = lc.encode(sample.image, codec, task, steps=8, lr=1e-2)
        assert coded.loss_after < coded.loss_before
        measured = task.measure(lc.decode(coded.data), sample)
        assert coded.loss_after == pytest.approx(
            task.weight(2) * measured["feature_distance"] + bpp(coded.data, sample.image.shape[1:]), rel=1e-4
        )
