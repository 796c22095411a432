"""Folders of images, bundled photographs, and `load_data`."""

import pytest
import torch

from lora_comp.data import load_data, write_image
from lora_comp.errors import ImageError, LoraCompError


def fill(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, torch.full((3, 4, 6), i / 255))
    return folder


def test_class_folders_are_labelled_in_sorted_order(tmp_path):
    data = load_data("folder", fill(tmp_path, "dog/1.png", "cat/1.png", "cat/2.jpg"))
    assert data.classes == ["cat", "dog"]
    assert [(data[i].name, data[i].label) for i in range(len(data))] == [
        ("cat/1.png", 0),
        ("cat/2.jpg", 0),
        ("dog/1.png", 1),
    ]
    assert data[0].image.shape == (3, 4, 6)


def test_a_plain_folder_has_no_labels_and_ignores_other_files(tmp_path):
    fill(tmp_path, "b.png", "a.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_data("folder", tmp_path)
    assert data.classes == []
    assert [(data[i].name, data[i].label, len(data[i].boxes), data[i].masks.shape) for i in range(2)] == [
        ("a.PNG", None, 0, (0, 4, 6)),
        ("b.png", None, 0, (0, 4, 6)),
    ]


def test_split_selects_a_sub_folder(tmp_path):
    fill(tmp_path, "train/cat/1.png", "val/cat/2.png", "val/dog/3.png")
    assert [len(load_data("folder", tmp_path, split)) for split in ("train", "val")] == [1, 2]


def test_limit_keeps_every_class(tmp_path):
    data = load_data("folder", fill(tmp_path, *(f"{kind}/{i}.png" for kind in "abcd" for i in range(5))), limit=4)
    assert [data[i].label for i in range(len(data))] == [0, 1, 2, 3]


def test_imagenet_labels_follow_sorted_wnids(tmp_path):
    fill(tmp_path, "val/n02123045/x.JPEG", "val/n01440764/y.JPEG", "train/n09999999/z.JPEG")
    data = load_data("imagenet", tmp_path)
    assert data.classes == ["n01440764", "n02123045"]
    assert [data[i].label for i in range(len(data))] == [0, 1]


def test_an_unreadable_image_raises_when_it_is_read(tmp_path):
    fill(tmp_path, "a.png", "c.png")
    (tmp_path / "b.png").write_text("not an image")
    data = load_data("folder", tmp_path)
    assert len(data) == 3
    with pytest.raises(ImageError, match=r"b\.png"):
        data[1]
    assert data[2].name == "c.png"


@pytest.mark.parametrize(
    "name, files, message",
    [
        ("folder", None, "is not a folder"),
        ("folder", [], "holds no images"),
        ("folder", ["a.png", "cat/b.png"], "beside and inside"),
        ("imagenet", ["n01440764/a.png"], "no folder 'val'"),
        ("imagenet", ["val/a.png"], "no class folders"),
    ],
)
def test_unsuitable_folders_raise_a_one_line_error(tmp_path, name, files, message):
    folder = tmp_path / "images"
    if files is not None:
        folder.mkdir()
        fill(folder, *files)
    with pytest.raises(LoraCompError, match=message) as error:
        load_data(name, folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call, message",
    [
        (dict(name="cifar"), "unknown data set 'cifar'; available are scenes, photos, folder, imagenet"),
        (dict(name="folder"), "needs the path"),
        (dict(name="photos", path="here"), "takes no options, not path"),
        (dict(name="photos", size=64), "takes no options, not size"),
        (dict(name="scenes", colour="red"), "takes size and seed, not colour"),
        (dict(name="scenes", limit=0), "at least 1"),
    ],
)
def test_wrong_arguments_raise_a_one_line_error(call, message):
    with pytest.raises(LoraCompError, match=message):
        load_data(**call)


def test_photos_load_at_their_original_size():
    data = load_data("photos")
    samples = {data[i].name: data[i] for i in range(len(data))}
    assert samples["astronaut"].image.shape == (3, 512, 512)
    assert all(0 <= s.image.min() < s.image.max() <= 1 and s.label is None for s in samples.values())
    assert torch.equal(samples["camera"].image[0], samples["camera"].image[2])


def test_limit_applies_to_scenes_and_photos():
    assert len(load_data("scenes", limit=7)) == 7
    assert len(load_data("photos", limit=3)) == 3
