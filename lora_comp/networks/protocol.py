"""What a task asks of a frozen network.

Images are float32 (B, 3, H, W), RGB in [0, 1], of any size: resizing, colour order and normalisation are the
network's own. Networks are in evaluation mode, and their weights have no gradient.
"""

from typing import Protocol

import torch
from torch import Tensor


class TaskNetwork(Protocol):
    """A network whose features are compared.

    name: what it was loaded by.
    classes: names of its classes, in the order of its labels; empty where they are not known. A network whose classes
        have several names has `aliases` too, all names of each class.
    stage_variance: the variance of the numbers of each stage on natural images; None where it was not measured.
    """

    name: str
    classes: list[str]
    stage_variance: list[float] | None

    def stages(self, x: Tensor) -> list[Tensor]:
        """The features to compare, each (B, ...), in order of computation, differentiable in `x`."""

    def to(self, device: torch.device) -> "TaskNetwork": ...


class Classifier(TaskNetwork, Protocol):
    """A network that names what an image shows."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""


class Detector(TaskNetwork, Protocol):
    """A network that finds objects. Those trained on COCO number its 80 categories in the order of their ids, as
    `lora_comp.data` does.

    has_masks: whether it segments its objects.
    published_scale: the factor by which a published loss multiplies the sum over the stages of the mean squared
        errors; None where there is no published loss.
    """

    has_masks: bool
    published_scale: float | None

    def detect(self, x: Tensor) -> list[dict[str, Tensor]]:
        """For each image its detections, the highest score first, without gradient: "boxes" float32 (n, 4), x1 y1 x2
        y2 in pixels of `x`, "scores" (n,), "labels" int64 (n,), indices of `classes`, and of a network with masks
        "masks" bool (n, H, W)."""
