"""Training of the detector and the segmenter: labels, exact resumption, and initial weights."""

import json

import pytest
import torch

from lora_comp.data import Scenes
from lora_comp.data.shapes import KINDS
from lora_comp.networks import load_detector, load_network, save_network
from lora_comp.networks.rcnn import SmallRCNN
from lora_comp.training import detector
from lora_comp.training.detector import ObjectBatches, begin_from, train_detector


@pytest.fixture
def small(monkeypatch):
    """Batches with one new scene each, which is repeated after two steps."""
    monkeypatch.setattr(detector, "FRESH", 1)
    monkeypatch.setattr(detector, "LAG", 2)
    return ObjectBatches


class InterruptedAtStepTwo(ObjectBatches):
    def __getitem__(self, step):
        if step == 2:
            raise RuntimeError("interrupted")
        return super().__getitem__(step)


def train(batches, folder):
    torch.manual_seed(0)
    unseen = {"": Scenes("val", 2, 96), " test": Scenes("test", 2, "odd")}
    train_detector(
        SmallRCNN(list(KINDS), masks=True),
        batches,
        unseen,
        Scenes("train", 2, 96),
        folder / "a.safetensors",
        folder / "work",
        3,
        1e-3,
        trained_on="a few",
    )
    return folder / "a.safetensors"


def test_a_resumed_training_gives_identical_weights(small, tmp_path):
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    whole = train(small(3, 0), tmp_path / "once")
    with pytest.raises(RuntimeError, match="interrupted"):
        train(InterruptedAtStepTwo(3, 0), tmp_path / "twice")
    resumed = train(small(3, 0), tmp_path / "twice")
    assert resumed.read_bytes() == whole.read_bytes()

    card = json.loads(whole.with_suffix(".json").read_text())
    assert {"mAP", "AP50", "mask mAP", "mAP test", "mask AP50 test", "minutes", "parameters"} <= set(card)
    assert (card["trained_on"], card["steps"], len(card["stage_variance"])) == ("a few", 3, 4)


def test_repeated_scenes_are_rotated_and_mirrored_with_their_annotations(small):
    batches = small(9, 0)
    images, targets = batches[4]
    assert torch.allclose(images[1], batches[2][0][0].flip(-2, -1))
    assert torch.allclose(images[2], batches[0][0][0].flip(-1))
    for image, target in zip(images, targets, strict=True):
        assert target["masks"].shape[1:] == image.shape[1:]
        for (left, top, right, bottom), mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert min(mask[top].max(), mask[bottom - 1].max(), mask[:, left].max(), mask[:, right - 1].max()) == 1


def test_initial_weights_come_from_a_classifier_or_a_detector(tmp_path):
    network = SmallRCNN(list(KINDS))
    classifier = load_network("scenes").state_dict()
    begin_from(network, {f"pyramid.body.{name}": value for name, value in classifier.items()})
    taken = network.state_dict()
    assert torch.equal(taken["pyramid.body.layers.2.1.conv2.weight"], classifier["layers.2.1.conv2.weight"])
    segmenter = SmallRCNN(list(KINDS), masks=True)
    begin_from(segmenter, taken)
    assert all(torch.equal(segmenter.state_dict()[name], value) for name, value in taken.items())
    save_network(segmenter, tmp_path / "seg.safetensors")
    assert load_detector(tmp_path / "seg.safetensors", masks=True).has_masks
