"""Folders of images, ImageNet, and the photographs that scikit-image ships."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import torch

from lora_comp.data.images import read_image
from lora_comp.data.sample import Sample
from lora_comp.errors import LoraCompError
from lora_comp.settings import REQUIRED, setting

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}

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


def _images_under(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


@dataclass(frozen=True)
class FolderOptions:
    path: str = setting(REQUIRED, "folder with images, or with a folder of images for each class", path=True)
    split: str = setting("val", "sub-folder to read, if present")
    limit: int | None = setting(None, "maximal number of images, sampled evenly over the set", low=1)


class Folder:
    """A folder of images.

    Sub-folders with images are classes, labelled in the order of their names (torchvision's ImageFolder layout);
    without any, labels are None. A sub-folder named like the split is read in place of `path`.
    Raises LoraCompError if the folder is missing or holds no images.
    """

    options: type[FolderOptions] = FolderOptions

    def __init__(self, path: str | os.PathLike, split: str = "val", limit: int | None = None):
        root = Path(path)
        if not root.is_dir():
            raise LoraCompError(f"{root} is not a folder; give the folder of the images")
        if (root / split).is_dir():
            root = root / split
        self.name = root.name if root.name != split else root.parent.name
        self.root = root
        by_class = {folder.name: _images_under(folder) for folder in sorted(root.iterdir()) if folder.is_dir()}
        by_class = {name: paths for name, paths in by_class.items() if paths}
        loose = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        if loose and by_class:
            raise LoraCompError(
                f"{root} holds images both beside and inside sub-folders; sub-folders are classes, "
                "so move every image into one"
            )
        self.classes = list(by_class)
        files: list[tuple[Path, int | None]] = [(path, None) for path in loose]
        files += [(path, label) for label, paths in enumerate(by_class.values()) for path in paths]
        if not files:
            raise LoraCompError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))})")
        self.files = spread(files, limit)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.files[index]
        return Sample(path.relative_to(self.root).as_posix(), read_image(path), label)


@dataclass(frozen=True)
class ImageNetOptions(FolderOptions):
    path: str = setting(REQUIRED, "folder that holds val/ and train/", path=True)


class ImageNet(Folder):
    """ILSVRC 2012 as ROOT/val/<wnid>/*.JPEG; labels number the wnids in sorted order, as in torchvision."""

    options = ImageNetOptions

    def __init__(self, path: str | os.PathLike, split: str = "val", limit: int | None = None):
        if not (Path(path) / split).is_dir():
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
