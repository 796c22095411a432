"""Data sets: generated scenes, bundled photographs, folders of images, and the layouts of annotated data sets."""

import os
from collections.abc import Callable
from typing import Protocol

from lora_comp.data.annotated import Cityscapes, Coco, Voc
from lora_comp.data.folders import Folder, ImageNet, Photos
from lora_comp.data.images import read_image, write_image
from lora_comp.data.sample import Sample
from lora_comp.data.scenes import Scenes
from lora_comp.errors import LoraCompError

__all__ = [
    "Cityscapes",
    "Coco",
    "Dataset",
    "Folder",
    "ImageNet",
    "Photos",
    "Sample",
    "Scenes",
    "Voc",
    "load_data",
    "read_image",
    "write_image",
]


class Dataset(Protocol):
    """A sequence of samples. `d[i]` raises ImageError if image i cannot be read; the others remain readable."""

    name: str
    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


_DATASETS: dict[str, Callable[..., Dataset]] = {
    "scenes": Scenes,
    "photos": Photos,
    "folder": Folder,
    "imagenet": ImageNet,
    "coco": Coco,
    "voc": Voc,
    "cityscapes": Cityscapes,
}


def load_data(
    name: str, path: str | os.PathLike | None = None, split: str = "val", limit: int | None = None, **options
) -> Dataset:
    """Load a data set by name.

    Args:
        name: "scenes", "photos", or one that needs `path`: "folder", "imagenet", "coco", "voc" or "cityscapes".
        path: root folder of the data set.
        split: "train", "val" or "test"; ignored by "photos".
        limit: maximal number of images. Files are sampled evenly over the whole set, so that every class keeps its
            share.
        options: `size` and `seed` of "scenes".
    Raises:
        LoraCompError: unknown name or option, or a missing or empty folder.
    """
    if name not in _DATASETS:
        raise LoraCompError(f"unknown data set {name!r}; available are {', '.join(_DATASETS)}")
    if limit is not None and limit < 1:
        raise LoraCompError(f"limit must be at least 1, not {limit}")
    if options and name != "scenes":
        raise LoraCompError(f"the data set {name!r} takes no {', '.join(options)}")
    if name not in ("scenes", "photos"):
        if path is None:
            raise LoraCompError(f"the data set {name!r} needs the path of its folder (data.path=FOLDER)")
        return _DATASETS[name](path, split=split, limit=limit)
    if path is not None:
        raise LoraCompError(f"the data set {name!r} takes no path; use 'folder' to read a folder")
    if name == "photos":
        return Photos(limit=limit)
    unknown = sorted(set(options) - {"size", "seed"})
    if unknown:
        raise LoraCompError(f"the data set 'scenes' takes size and seed, not {', '.join(unknown)}")
    return Scenes(split=split, **({} if limit is None else {"count": limit}), **options)
