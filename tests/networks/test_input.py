"""How images reach a network."""

import pytest
import torch

from lora_comp.errors import LoraCompError
from lora_comp.networks.input import Input, Preparation, read_input


def test_a_image_is_resized_its_channels_turned_scaled_and_normalised(tmp_path):
    path = tmp_path / "input.yaml"
    path.write_text("size: [2, 4]\nchannels: bgr\nrange: 255\nmean: [1, 2, 3]\nstd: [1, 1, 2]\n")
    prepared = Preparation(read_input(path, Input()))(torch.tensor([0.0, 0.2, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    assert prepared.shape == (1, 3, 2, 4)
    assert prepared[0, :, 0, 0].tolist() == pytest.approx([254, 49, -1.5])


def test_what_is_not_told_of_the_input_stays_the_networks_own():
    own = Input(size=(64, 64), mean=(0.5, 0.5, 0.5))
    assert read_input({"size": None, "channels": "BGR"}, own) == Input((64, 64), "bgr", mean=(0.5, 0.5, 0.5))
    assert read_input({"size": 32}, own).size == (32, 32)


@pytest.mark.parametrize(
    "given, says",
    [
        ({"sise": 3}, "are size, channels, range, mean, std, not sise"),
        ({"size": [3]}, "size of a network's input"),
        ({"size": "large"}, "a side or [height, width], not 'large'"),
        ({"channels": "yuv"}, "rgb or bgr, not 'yuv'"),
        ({"range": 0}, "number above 0"),
        ({"mean": [1, 2]}, "mean of a network's input must be three numbers"),
        ({"std": [1, 1, 0]}, "std of a network's input must be three numbers above 0"),
        ("nowhere.yaml", "nowhere.yaml"),
        (__file__, "is not YAML"),
    ],
)
def test_an_input_that_cannot_be_is_told_in_one_line(given, says):
    with pytest.raises(LoraCompError) as error:
        read_input(given, Input())
    assert says in str(error.value) and "\n" not in str(error.value)


def test_small_images_are_enlarged_for_networks_that_halve_them_often():
    prepare = Preparation(Input(), least_side=64)
    assert prepare(torch.rand(1, 3, 16, 40)).shape[2:] == (64, 160)
    x = torch.rand(1, 3, 64, 90)
    assert torch.equal(prepare(x), x)


@pytest.mark.parametrize(
    ("given", "own", "other"),
    [
        ({"mean": [123.675, 116.28, 103.53]}, Input(), 255),
        ({"mean": [0, 0, 0], "std": [255, 255, 255]}, Input(), 255),
        ({"mean": [-127.5, 0, 0]}, Input(), 255),
        ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, Input(range=255), 1),
    ],
)
def test_a_mean_that_is_of_another_range_is_questioned_unless_the_range_is_given(given, own, other):
    with pytest.raises(LoraCompError, match=rf"set task\.input\.range={other} .*, else range={own.range:g}"):
        read_input(given, own)
    for value in (1, 255):
        assert read_input({**given, "range": value}, own).range == value
