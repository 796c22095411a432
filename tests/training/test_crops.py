"""Training crops: which images of a data set are read, and which are skipped."""

import numpy as np
import pytest
import torch
from PIL import Image

from lora_comp.errors import LoraCompError
from lora_comp.training import crops
from lora_comp.training.batches import Resident
from lora_comp.training.crops import Crops, layout


def fill(folder, *names, side=40):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (side, side + 8, 3), dtype=np.uint8)).save(folder / name, "PNG")
    return folder


@pytest.mark.parametrize(
    ("names", "kind", "read"),
    [
        (
            ["train/n01440764/a.JPEG", "train/n01443537/b.JPEG", "val/n01440764/c.JPEG"],
            "ImageNet",
            ["train/n01440764", "train/n01443537"],
        ),
        (["Data/CLS-LOC/train/n01440764/a.JPEG", "Data/CLS-LOC/val/c.JPEG"], "ImageNet", ["Data/CLS-LOC/train"]),
        (["train2017/a.jpg", "val2017/b.jpg"], "COCO", ["train2017"]),
        (
            ["images/train2014/a.jpg", "images/unlabeled2017/a.jpg", "images/val2014/b.jpg"],
            "COCO",
            ["images/train2014", "images/unlabeled2017"],
        ),
        (["train/data/a.jpg", "validation/data/b.jpg"], "OpenImages", ["train/data"]),
        (["train_0/a.jpg", "train_f/b.jpg", "validation/c.jpg"], "OpenImages", ["train_0", "train_f"]),
        (["flicker_2W_images/a.jpg", "readme/a.jpg"], "Flickr2W", ["flicker_2W_images"]),
        (["train/daisy/a.png", "val/daisy/b.png"], "a folder with train/", ["train"]),
        (["a.png", "more/b.png", "more/of/c.png"], "a folder", ["."]),
    ],
)
def test_only_the_training_images_of_a_data_set_are_read(tmp_path, names, kind, read):
    fill(tmp_path, *names)
    assert layout(tmp_path) == (kind, [tmp_path / name for name in read])


def test_other_folders_are_searched_recursively(tmp_path):
    data = Crops([fill(tmp_path, "a.png", "more/b.png", "more/of/c.png")], 32)
    assert len(data.training) + len(data.validation) == 3


def test_nothing_hidden_is_read_and_the_rest_is_counted(tmp_path, capsys):
    fill(
        tmp_path, "a.png", "b.png", "c.jfif", ".ipynb_checkpoints/a.png", "more/__MACOSX/a.png", "more/._a.png", "d.tif"
    )
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = Crops([tmp_path], 32)
    assert sorted(path.name for path in data.sizes) == ["a.png", "b.png", "c.jfif"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("not read: 3 hidden files and folders, 1 .tif file, 1 broken link")


def damaged(folder):
    fill(folder, *(f"{i}.png" for i in range(5)))
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:-900])
    (folder / "text.jpg").write_text("not an image")
    fill(folder, "small.png", side=20)
    return folder


def test_unreadable_and_small_images_are_skipped_and_counted(tmp_path, capsys):
    Crops([damaged(tmp_path)], 32)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "5 images from a folder; skipped 2 unreadable and 1 smaller ones"
    )


@pytest.mark.parametrize("names", [[], ["a.png"]])
def test_fewer_than_two_images_raise(tmp_path, names):
    with pytest.raises(LoraCompError, match="at least two images of 64x64") as error:
        Crops([fill(tmp_path, *names)], 64)
    assert "\n" not in str(error.value)


def test_crops_are_the_same_without_images_in_memory(tmp_path, monkeypatch):
    fill(tmp_path, *(f"{i}.png" for i in range(5)))
    kept = Crops([tmp_path], 32, crops.SCALES)
    monkeypatch.setattr(crops, "IN_MEMORY", 0)
    drawn = Crops([tmp_path], 32, crops.SCALES)
    assert not drawn.kept
    assert torch.equal(drawn.batch(8, seed=3), kept.batch(8, seed=3))
    assert torch.equal(drawn.held_out(2), kept.held_out(2))


def test_images_are_reduced_as_far_as_a_crop_fits(tmp_path):
    data = Crops([fill(tmp_path, "a.png", "b.png", "c.png")], 32, crops.SCALES)  # of 40x48
    assert {place.scale for place in data.places(64, seed=0)} == {1.0, 0.9}
    small = crops.reduced(np.tile(np.uint8([0, 255]), 24)[None, :, None].repeat(40, 0).repeat(3, 2), 0.6)
    assert small.shape == (24, 29, 3) and small[:, 2:-2].std() < 40  # stripes as fine as a pixel become grey


@pytest.mark.parametrize("scales", [(1.0,), crops.SCALES])
def test_crops_cut_on_the_device_are_those_of_the_processor(tmp_path, scales):
    data = Crops([fill(tmp_path, *(f"{i}.png" for i in range(5)))], 32, scales)
    resident = Resident(data, 8, torch.device("cpu"))
    for seed in (1, 2):
        resident.load(seed)
        assert torch.equal(resident(), data.batch(8, seed))


def test_an_unreadable_image_is_replaced_by_another(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(crops, "IN_MEMORY", 0)
    data = Crops([damaged(tmp_path)], 32)
    assert data.batch(64, seed=0).shape == (64, 3, 32, 32)
    assert "cut.png, which cannot be read" in capsys.readouterr().out
    for path in data.training:
        path.unlink()
    with pytest.raises(LoraCompError, match="in a row cannot be read"):
        data.batch(1, seed=0)


def test_shares_of_a_batch_make_up_the_batch(tmp_path):
    data = Crops([fill(tmp_path, *(f"{i}.png" for i in range(5)))], 32)
    whole = data.batch(6, seed=1)
    assert torch.equal(whole, torch.cat([data.batch(6, 1, slice(0, 3)), data.batch(6, 1, slice(3, 6))]))
