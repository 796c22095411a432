"""Data sets: generated scenes, bundled photographs, folders of images, and the layouts of annotated data sets."""

import inspect
import os
from collections.abc import Callable
from typing import Any, Protocol

from lora_comp.data.annotated import Cityscapes, Voc
from lora_comp.data.coco import Coco
from lora_comp.data.folders import Folder, ImageNet, Photos
from lora_comp.data.images import read_image, write_image
from lora_comp.data.sample import Sample
from lora_comp.data.scenes import Scenes
from lora_comp.errors import LoraCompError
from lora_comp.settings import NoOptions

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
    """A sequence of samples. `d[i]` raises ImageError if image i cannot be read; the others remain readable.

    classes: the names that the labels index. notes: lines on what was not read, or is doubtful; a set may lack them.
    """

    name: str
    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


DATASETS: dict[str, Callable[..., Dataset]] = {
    "scenes": Scenes,
    "photos": Photos,
    "folder": Folder,
    "imagenet": ImageNet,
    "coco": Coco,
    "voc": Voc,
    "cityscapes": Cityscapes,
}


def choices() -> dict[str, Any]:
    """The options of each data set: the attribute `options` of its class, if it has one."""
    return {name: getattr(data, "options", NoOptions) for name, data in DATASETS.items()}


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
    if name not in DATASETS:
        raise LoraCompError(f"unknown data set {name!r}; available are {', '.join(DATASETS)}")
    if limit is not None and limit < 1:
        raise LoraCompError(f"limit must be at least 1, not {limit}")
    takes = inspect.signature(DATASETS[name]).parameters
    amount = "limit" if "limit" in takes else "count"
    given = options | {"split": split} if "split" in takes else options
    given |= {key: value for key, value in (("path", path), (amount, limit)) if value is not None}
    if unknown := sorted(set(given) - set(takes)):
        accepted = " and ".join(key for key in takes if key not in ("split", amount))
        raise LoraCompError(f"the data set {name!r} takes {accepted or 'no options'}, not {', '.join(unknown)}")
    if "path" in takes and path is None:
        raise LoraCompError(f"the data set {name!r} needs the path of its folder (data.path=FOLDER)")
    return DATASETS[name](**given)
