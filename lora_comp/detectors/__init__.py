"""Networks that find objects, behind one interface: those that ship here, torchvision's, detectron2's and DETR.

A detector takes float images (B, 3, H, W) in [0, 1] of any size; resizing, colour order and normalisation are its
own. It has
    name               str
    classes            list of class names, in the order of its labels
    has_masks          bool: whether it segments
    published_scale    float, the factor with which the sum over its pyramid of the mean squared errors was published,
                       or None
    stage_variance     variance of the numbers of each stage on natural images, or None where it was not measured
    stages(x)          list of feature maps of its pyramid, fine to coarse, differentiable in x
    detect(x)          a dict for each image, without gradient: "boxes" float32 (n, 4), x1 y1 x2 y2 in pixels of x,
                       "scores" (n,), "labels" int64 (n,), indexes of `classes`, best first, and with masks "masks"
                       bool (n, H, W)
Those trained on COCO count its 80 categories in the order of their ids, as `lora_comp.data` does.
"""

import os
from importlib import import_module
from typing import Any

import torch

from lora_comp.errors import LoraCompError

# Where the detectors of a library are made; "" is for those that ship here and for files of our own.
_MODULES = {
    "torchvision": "lora_comp.detectors.torchvision",
    "detectron2": "lora_comp.detectors.detectron2",
    "transformers": "lora_comp.detectors.detr",
    "": "lora_comp.detectors.small",
}


def load_detector(
    name: str | os.PathLike,
    weights: str | os.PathLike | None = "default",
    masks: bool = False,
    seed: int = 0,
) -> Any:
    """A frozen detector in evaluation mode, or with `masks` one that also segments.

    name: "scenes" (ships here), "torchvision/NAME", "detectron2/CONFIG", "transformers/NAME", or the path of a file of
    ours. weights: "default" is what ships or what the library publishes (and downloads), None random ones from `seed`,
    anything else a checkpoint file of that architecture.
    Raises LoraCompError, in one line, for an unknown name, a library that is not installed, and weights that are
    missing or do not fit.
    """
    library, slash, kind = str(name).partition("/")
    known = slash and library and library in _MODULES  # an absolute path has nothing before its first slash
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        load = import_module(_MODULES[library if known else ""]).load
        network = load(kind if known else name, weights, masks)
    if masks and not network.has_masks:
        raise LoraCompError(
            f"the detector {str(name)!r} has no masks; task=seg needs one that segments, as scenes or "
            "torchvision/maskrcnn_resnet50_fpn"
        )
    return network.eval().requires_grad_(False)
