"""An image with its annotations."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """An image with its annotations; those that a data set lacks are None or empty.

    name: unique in the data set, "/"-separated for images in folders
    image: float32 (3, H, W) in [0, 1]
    label: class of the image, an index into `classes`, or None
    boxes: float32 (n, 4), x1 y1 x2 y2 of the n objects in pixels, right and lower edge exclusive
    labels: int64 (n,), classes of the objects, indices into `classes`
    masks: bool (n, H, W), visible pixels of the objects; (0, H, W) for a data set without masks
    crowd: bool (n,), groups of objects that the score ignores (COCO's iscrowd)
    annotated: whether all objects of the image are annotated; if not, there are no annotations of objects
    classes: the names of the data set's classes, by which a task finds them among its network's (`tasks.labels`); empty
        where labels are indices of the network's own classes
    present: those of `classes` that objects of the data set have; empty where that is not known
    """

    name: str
    image: Tensor
    label: int | None = None
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    masks: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.bool))
    crowd: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    annotated: bool = False
    classes: Sequence[str] = ()
    present: Sequence[int] = ()

    def __post_init__(self) -> None:
        if len(self.masks) == 0:
            object.__setattr__(self, "masks", torch.zeros(0, *self.image.shape[1:], dtype=torch.bool))
        if len(self.crowd) == 0:
            object.__setattr__(self, "crowd", torch.zeros(len(self.boxes), dtype=torch.bool))
