"""Training of the small classifiers: exact resumption, batches, and the card."""

import json

import pytest
import torch

from lora_comp.data import Folder, Scenes, write_image
from lora_comp.networks import load_network
from lora_comp.training.network import FolderBatches, SceneBatches, train_flowers, train_network


class InterruptedAtStepTwo(SceneBatches):
    def __getitem__(self, step):
        if step == 2:
            raise RuntimeError("interrupted")
        return super().__getitem__(step)


def train(batches, folder):
    train_network("scenes", batches, Scenes("val", 3), Scenes("train", 3), folder / "a.safetensors", folder / "work", 4)
    return folder / "a.safetensors"


def test_a_resumed_training_gives_identical_weights(tmp_path):
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    whole = train(SceneBatches(4, 0), tmp_path / "once")
    with pytest.raises(RuntimeError, match="interrupted"):
        train(InterruptedAtStepTwo(4, 0), tmp_path / "twice")
    resumed = train(SceneBatches(4, 0), tmp_path / "twice")
    assert resumed.read_bytes() == whole.read_bytes()


def test_cells_hold_the_area_shares_of_all_kinds():
    images, labels, cells = SceneBatches(10, 0)[3]
    assert cells.shape == (len(images), 13, images.shape[2] // 16, images.shape[3] // 16)
    assert torch.allclose(cells.sum(dim=1), torch.ones(()))
    area = cells[:, :-1].mean(dim=(2, 3))  # (B, kinds)
    assert torch.equal(area.argmax(dim=1), labels), "the label is the kind of the largest area"


@pytest.fixture
def flowers(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for label, kind in enumerate(("daisy", "tulip")):
            (tmp_path / split / kind).mkdir(parents=True)
            for i in range(count):
                write_image(tmp_path / split / kind / f"{i}.png", torch.full((3, 40, 50), label * 0.9))
    return tmp_path


def test_folder_batches_are_reproducible_and_cover_the_folder(flowers):
    batches = FolderBatches(Folder(flowers, "train"), 10, 0)
    images, labels, _ = batches[1]
    assert torch.equal(images, batches[1][0])
    assert not torch.equal(images, batches[2][0])
    assert images.shape == (6, 3, 96, 96)
    assert batches[9][0].shape == (6, 3, 160, 160)
    assert torch.allclose(labels.sum(dim=0), torch.tensor([3.0, 3.0])), (
        "images are mixed in pairs, each with weight one in total"
    )


def test_the_last_batches_are_not_augmented(flowers):
    images, labels, _ = FolderBatches(Folder(flowers, "train"), 100, 0)[95]
    assert images.shape == (6, 3, 176, 176)
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert sorted(images[:, 0, 0, 0].tolist()) == pytest.approx([0, 0, 0, 0.9, 0.9, 0.9], abs=0.01)


def test_the_card_records_training_data_and_top1(flowers):
    train_flowers(flowers, flowers / "net.safetensors", flowers / "work", steps=2)
    card = json.loads((flowers / "net.json").read_text())
    assert card["classes"] == ["daisy", "tulip"]
    assert card["trained_on"] == "6 photographs of flowers, split train"
    assert card["scored_on"] == "4 photographs, split val"
    assert card["steps"] == 2
    assert 0 <= card["top1"] <= 1
    assert len(card["stage_variance"]) == 4
    assert load_network(flowers / "net.safetensors").classes == ["daisy", "tulip"]
