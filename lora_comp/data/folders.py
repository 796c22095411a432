"""Folders of images, ImageNet, and the photographs that scikit-image ships."""

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import torch

from lora_comp.data.found import Found, below, counted, find_images, is_hidden
from lora_comp.data.images import read_image
from lora_comp.data.sample import Sample
from lora_comp.errors import LoraCompError
from lora_comp.settings import REQUIRED, setting

# Names of folders that are no classes, in lower case.
IMAGES = {"images", "image", "imgs", "img", "jpegimages"}
ANNOTATIONS = {
    *("labels", "label", "annotations", "annotation", "masks", "mask", "gt", "ground_truth", "groundtruth"),
    *("segmentations", "segmentation", "seg"),
}
SPLITS = {"train", "val", "valid", "validation", "test", "testing", "training", "dev"}

# Part of scikit-image's wheel, so no download is needed.
PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "moon",
    "rocket",
    "stereo_motorcycle",
)


def photograph(name: str) -> np.ndarray:
    """One of scikit-image's bundled photographs, uint8 (H, W, 3)."""
    image = getattr(skimage.data, name)()
    image = image[0] if isinstance(image, tuple) else image  # the left image of a stereo pair
    return np.ascontiguousarray(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))


def spread(items: list, limit: int | None) -> list:
    """At most `limit` items, evenly spaced, since the first ones of a sorted folder are all of one class."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


@dataclass(frozen=True)
class FolderOptions:
    path: str = setting(REQUIRED, "folder with images, or with a folder of images for each class", path=True)
    split: str = setting("val", "sub-folder to read, if present")
    limit: int | None = setting(None, "maximal number of images, sampled evenly over the set", low=1)


class Folder:
    """A folder of images.

    Sub-folders with images are classes in the order of their names (torchvision's ImageFolder layout); without any,
    labels are None. A sub-folder named like the split is read in place of `path`, and then `images/` where it holds all
    images; beside a folder of annotations (YOLO's layout), what it holds has no classes.

    notes: what is not read, in a line.
    Raises LoraCompError if the folder is missing, holds no images, or only splits of other names.
    """

    options: type[FolderOptions] = FolderOptions

    def __init__(self, path: str | os.PathLike, split: str = "val", limit: int | None = None):
        root = Path(path)
        if not root.is_dir():
            raise LoraCompError(f"{root} is not a folder; give the folder of the images")
        self.root, by_class, loose, skipped = _layout(root, split)
        if loose and by_class:
            raise LoraCompError(
                f"{self.root} holds images both beside and inside sub-folders; sub-folders are classes, "
                "so move every image into one"
            )
        self.name = root.resolve().name
        self.classes = list(by_class)
        files: list[tuple[Path, int | None]] = [(path, None) for path in loose]
        files += [(path, label) for label, paths in enumerate(by_class.values()) for path in paths]
        if not files:
            has = f"; it has {counted(skipped)}" if skipped else ""
            raise LoraCompError(f"{root} holds no images (.png, .jpg, .webp and others that Pillow reads){has}")
        self.notes = [f"not read in {self.name}: {counted(skipped)}"] if skipped else []
        self.files = spread(files, limit)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.files[index]
        return Sample(path.relative_to(self.root).as_posix(), read_image(path), label, classes=self.classes)


def _layout(root: Path, split: str) -> tuple[Path, dict[str, list[Path]], list[Path], Counter[str]]:
    """The folder of the images, those of its sub-folders, those beside them, and how many of what is not read."""
    root, skipped = below(root, split), Counter[str]()
    folders, beside = _read(root)
    images = None if beside.images else _only_images([name for name, found in folders.items() if found.images])
    annotated = images and any(name.casefold() in ANNOTATIONS for name in folders)
    if images:
        skipped += beside.skipped
        for name in folders.keys() - {images}:
            skipped += folders[name].skipped
            skipped[f"images in {name}/"] += len(folders[name].images)
        root = below(root / images, split)
        folders, beside = _read(root)
    skipped = sum((found.skipped for found in folders.values()), skipped + beside.skipped)
    by_class = {name: found.images for name, found in folders.items() if found.images}
    if by_class and all(name.casefold().rstrip("0123456789_-") in SPLITS for name in by_class):
        raise LoraCompError(
            f"{root} has no split {split!r}, but {' and '.join(by_class)}: set data.split to one of them, or give its "
            "folder"
        )
    if annotated:
        return root, {}, sorted(sum(by_class.values(), beside.images)), skipped
    return root, by_class, beside.images, skipped


def _read(root: Path) -> tuple[dict[str, Found], Found]:
    """What is in each sub-folder, and beside the sub-folders."""
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    return {folder.name: find_images(folder) for folder in folders}, find_images(root, deep=False)


def _only_images(folders: Collection[str]) -> str | None:
    """The sub-folder that holds all images, where the names of the others, if any, are those of annotations."""
    images = [name for name in folders if name.casefold() in IMAGES]
    others = {name.casefold() for name in folders} - IMAGES
    return images[0] if len(images) == 1 and others <= ANNOTATIONS else None


@dataclass(frozen=True)
class ImageNetOptions(FolderOptions):
    path: str = setting(REQUIRED, "folder that holds val/ and train/", path=True)


class ImageNet(Folder):
    """ILSVRC 2012 as ROOT/val/<wnid>/*.JPEG; the classes are wnids, all of them or some."""

    options = ImageNetOptions

    def __init__(self, path: str | os.PathLike, split: str = "val", limit: int | None = None):
        if below(Path(path), split) == Path(path):
            raise LoraCompError(f"{path} has no folder {split!r}; ImageNet's layout is {path}/{split}/<wnid>/*.JPEG")
        super().__init__(path, split, limit)
        self.name = "imagenet"
        if not self.classes:
            raise LoraCompError(f"{self.root} has no class folders; sort its images into {self.root}/<wnid>/")


@dataclass(frozen=True)
class PhotosOptions:
    limit: int | None = setting(None, "maximal number of images", low=1)


class Photos:
    """scikit-image's bundled photographs at their original size, without labels."""

    options = PhotosOptions

    def __init__(self, limit: int | None = None):
        self.name = "photos"
        self.classes: list[str] = []
        self.names = spread(list(PHOTOS), limit)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        image = photograph(name).astype(np.float32).transpose(2, 0, 1) / 255
        return Sample(name, torch.from_numpy(np.ascontiguousarray(image)))
