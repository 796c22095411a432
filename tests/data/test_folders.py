"""Folders of images, bundled photographs, and `load_data`."""

import os
import re

import pytest
import torch
from PIL import Image

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


HIDDEN = [
    ".ipynb_checkpoints/a.png",
    ".hidden.png",
    "._a.png",
    "__MACOSX/a.png",
    "__MACOSX/cat/._1.png",
    "cat/.ipynb_checkpoints/1-checkpoint.png",
    "cat/deep/.git/1.png",
    "cat/__MACOSX/1.png",
    "cat/@eaDir/1.png/thumb.jpg",
    ".cat/1.png",
    "cat/.trash.png",
]


@pytest.mark.parametrize("hidden", HIDDEN)
def test_nothing_hidden_is_read_at_any_depth_and_it_is_counted(tmp_path, hidden):
    data = load_data("folder", fill(tmp_path, "cat/1.png", "dog/1.png", hidden))
    assert data.classes == ["cat", "dog"] and [data[i].name for i in range(2)] == ["cat/1.png", "dog/1.png"]
    assert len(data) == 2 and data.notes == [f"not read in {tmp_path.name}: 1 hidden file or folder"]


@pytest.mark.parametrize("hidden", [name for name in HIDDEN if not name.startswith("cat/")])
def test_what_is_hidden_beside_plain_images_is_no_class(tmp_path, hidden):
    data = load_data("folder", fill(tmp_path, "a.png", hidden))
    assert (data.classes, [data[i].name for i in range(len(data))]) == ([], ["a.png"])


def test_a_folder_may_lie_in_a_hidden_one(tmp_path):
    assert load_data("folder", fill(tmp_path / ".cache" / "set", "cat/1.png")).classes == ["cat"]


def test_what_is_not_read_is_counted_in_one_line(tmp_path):
    fill(tmp_path, "cat/1.png")
    for name in ("a.txt", "b.TXT", "model.h5", "c.heic", "LICENSE", "cloud.pcd", "page.pdf", "film.mpg"):
        (tmp_path / name).write_text("")
    (tmp_path / "cat" / "x.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    [note] = load_data("folder", tmp_path).notes
    assert note.startswith(f"not read in {tmp_path.name}: 2 .txt files, 2 broken links, 1 ") and "\n" not in note
    assert sum(int(number) for number in re.findall(r"(?:: |, | and )(\d+)", note)) == 11


def test_every_image_format_that_pillow_writes_is_read(tmp_path):
    colours = {"PNG", "JPEG", "JPEG2000", "WEBP", "AVIF", "BMP", "TIFF", "TGA", "PPM", "GIF", "QOI"} & set(Image.SAVE)
    known = {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind in colours}
    for suffix, kind in known.items():
        if suffix != ".pfm":
            Image.new("L" if suffix == ".pgm" else "1" if suffix == ".pbm" else "RGB", (40, 30)).save(
                tmp_path / f"a{suffix}", kind
            )
    data = load_data("folder", tmp_path)
    assert {".jfif", ".jp2", ".png"} <= {os.path.splitext(data[i].name)[1] for i in range(len(data))}
    assert {tuple(data[i].image.shape) for i in range(len(data))} == {(3, 30, 40)} and data.notes == []
    assert len(data) == len(known) - (".pfm" in known)


def test_links_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path / "store", "cat/1.png", "cat/more/2.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "store" / "cat")
    (tmp_path / "store" / "cat" / "loop").symlink_to(tmp_path / "store")
    data = load_data("folder", tmp_path / "set")
    assert [data[i].name for i in range(len(data))] == ["cat/1.png", "cat/more/2.png"]


@pytest.mark.parametrize(
    "files, names",
    [
        (["images/0.png", "images/1.png"], ["0.png", "1.png"]),
        (["Images/0.png", "labels/0.png"], ["0.png"]),
        (["images/0.png", "masks/0.png", "annotations/x/0.png"], ["0.png"]),
        (["images/train/0.png", "images/val/1.png"], ["1.png"]),
        (["train/images/0.png", "valid/images/1.png"], ["1.png"]),
        (["train/images/0.png", "val/images/1.png", "val/masks/1.png"], ["1.png"]),
        (["images/a/0.png", "images/b/1.png"], ["a/0.png", "b/1.png"]),
    ],
)
def test_a_folder_of_images_beside_annotations_is_no_class(tmp_path, files, names):
    fill(tmp_path, *files)
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 1 1")
    data = load_data("folder", tmp_path)
    assert data.classes == [] and [(data[i].name, data[i].label) for i in range(len(data))] == [
        (n, None) for n in names
    ]
    if "masks/0.png" in files:
        assert data.notes == [f"not read in {tmp_path.name}: 1 .txt file, 1 image in annotations/, 1 image in masks/"]


def test_classes_may_lie_below_images(tmp_path):
    data = load_data("folder", fill(tmp_path, "images/cat/0.png", "images/dog/1.png"))
    assert data.classes == ["cat", "dog"] and [data[i].name for i in range(2)] == ["cat/0.png", "dog/1.png"]


@pytest.mark.parametrize(
    "files, splits",
    [
        (["train/a/0.png", "test/a/1.png"], "test and train"),
        (["images/train/0.png", "images/test/1.png"], "test and train"),
        (["train2017/0.png", "test2017/1.png"], "test2017 and train2017"),
    ],
)
def test_splits_are_no_classes(tmp_path, files, splits):
    fill(tmp_path, *files)
    with pytest.raises(LoraCompError, match=rf"has no split 'val', but {splits}: set data.split"):
        load_data("folder", tmp_path)
    assert len(load_data("folder", tmp_path, splits.split()[0])) == 1


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
