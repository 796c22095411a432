"""torchvision's detectors: Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDlite."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model, get_model_weights, list_models

from lora_comp.errors import LoraCompError
from lora_comp.networks.checkpoints import load_checkpoint, no_weights
from lora_comp.networks.coco import check_sides, contiguous, in_classes

# The published COCO_V1 files of these were trained without the epsilon of batch norms.
_WITHOUT_EPS = (
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)


class TorchvisionDetector(nn.Module):
    """A detector of torchvision. Its stages are the maps that the backbone hands to the heads (of an R-CNN with a
    feature pyramid P2 to P6), of the image as its own transform prepares it.

    categories: names of the model's ids, the background first.
    """

    table: Tensor
    model: Any

    def __init__(self, name: str, model: nn.Module, categories: list[str], published_scale: float | None):
        super().__init__()
        self.name, self.model, self.published_scale = name, model, published_scale
        self.classes, table = contiguous(categories)
        self.register_buffer("table", table, persistent=False)
        self.has_masks = isinstance(model, detection.MaskRCNN)
        self.stage_variance: list[float] | None = None

    def _images(self, x: Tensor) -> list[Tensor]:
        if self.model.transform.fixed_size is None:
            check_sides(x, self.model.transform.max_size, self.name)
        return list(x)

    def stages(self, x: Tensor) -> list[Tensor]:
        prepared, _ = self.model.transform(self._images(x))
        return list(self.model.backbone(prepared.tensors).values())

    @torch.no_grad()
    def detect(self, x: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for image in self.model(self._images(x)):
            one = {key: image[key] for key in ("boxes", "scores", "labels")}
            if self.has_masks:
                one["masks"] = image["masks"][:, 0] > 0.5
            found.append(in_classes(one, self.table))
        return found


def _checkpoint(model: nn.Module, kind: str, path: str | os.PathLike, categories: list[str]) -> nn.Module:
    """The model with the weights of a file. If they are for another number of classes, whose names nobody knows, it is
    made for it, and `categories` is changed."""

    def with_classes(count: int) -> nn.Module:
        categories[1:] = [f"class {index}" for index in range(1, count)]
        return get_model(kind, weights=None, weights_backbone=None, num_classes=count)

    model = load_checkpoint(model, path, with_classes, classes=len(categories))
    if kind in _WITHOUT_EPS and Path(path).name == Path(get_model_weights(kind)["COCO_V1"].url).name:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return model


def load(name: str, weights: str | os.PathLike | None, masks: bool) -> TorchvisionDetector:
    """See `load_detector`. name: "torchvision/NAME"."""
    name = name.partition("/")[2]
    if name not in list_models(detection):
        raise LoraCompError(f"torchvision has no detector {name!r}; it has {', '.join(list_models(detection))}")
    published = weights == "default"
    try:
        model = get_model(name, weights="DEFAULT" if published else None, weights_backbone=None)
    except (OSError, RuntimeError) as error:
        raise no_weights(f"torchvision/{name}", error) from error
    categories = list(get_model_weights(name)["COCO_V1"].meta["categories"])
    if weights is not None and not published:
        model = _checkpoint(model, name, weights, categories)
    scale = 0.2 if weights is not None and isinstance(model, detection.FasterRCNN) else None
    return TorchvisionDetector(f"torchvision/{name}", model, categories, scale)
