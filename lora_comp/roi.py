"""Regions of interest: a weight w in [0, 1] for each pixel.

The task sees original + sqrt(w) (decoded - original): no error where w is 0, and squared errors weighted by w.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_comp.data.images import read_mask, to_mask
from lora_comp.errors import LoraCompError
from lora_comp.objective import Distortion

BOXES = "boxes"
MARGIN = 8  # pixels: a region is extended by this before the background is simplified
COARSE = 64  # pixels: side of the squares whose mean colours form the simplified background


def region(roi: str, image: Tensor, task) -> Tensor:
    """The weights of an image (3, H, W): float32 (H, W) in [0, 1].

    roi: "boxes", the confident detections of the task's network (the whole image if there are none), or the path of a
    mask of the same size, white and opaque where pixels count (`read_mask`).
    Raises LoraCompError for a task without detections or a mask of another size, ImageError for a mask that cannot be
    read or that selects nothing.
    """
    height, width = image.shape[1:]
    if roi != BOXES:
        if not Path(roi).exists():
            raise LoraCompError(f"roi must be {BOXES} or the path of a mask; there is no file {roi}")
        mask = read_mask(roi)
        if mask.shape != (height, width):
            raise LoraCompError(
                f"{Path(roi).name} is {mask.shape[1]}x{mask.shape[0]}, the image {width}x{height}: give a mask of "
                "the image's size"
            )
        return mask
    if not hasattr(task, "detections"):
        raise LoraCompError("roi=boxes needs a task with a detector, as task=det, or det among several: task=[cls,det]")
    weights = torch.zeros(height, width)
    for one in task.detections(image):
        if one["score"] >= task.score_threshold:
            x, y, w, h = one["bbox"]
            weights[max(round(y), 0) : max(round(y + h), 0), max(round(x), 0) : max(round(x + w), 0)] = 1
    return weights if weights.any() else torch.ones(height, width)


def regions(rois: Sequence[Any], originals: Tensor) -> Tensor:
    """Weights (H, W) of images (B, 3, H, W), in any of the forms of `to_mask`, as one tensor (B, 1, H, W).

    Raises LoraCompError for another number or size, and for weights outside [0, 1].
    """
    masks = [to_mask(roi).detach() for roi in rois]
    size, sizes = tuple(originals.shape[2:]), {tuple(mask.shape) for mask in masks}
    if len(masks) != len(originals) or sizes != {size}:
        raise LoraCompError(
            f"a region of interest is (H, W) like its image, {size}, not {' and '.join(map(str, sorted(sizes)))}"
        )
    weights = torch.stack(masks)[:, None].to(originals)
    if not (weights.min() >= 0 and weights.max() <= 1):
        raise LoraCompError("the weights of a region of interest must lie in [0, 1]: scale or clamp them")
    return weights


def masked_distortion(distortion: Distortion, original: Tensor, weights: Tensor) -> Distortion:
    """A distortion of decoded (B, 3, H, W) with errors weighted by weights (B, 1, H, W)."""
    return partial(_masked, distortion, original, weights.sqrt())


def _masked(distortion: Distortion, original: Tensor, shares: Tensor, decoded: Tensor) -> Tensor:
    return distortion(original + shares * (decoded - original))


def simplify_background(original: Tensor, weights: Tensor) -> Tensor:
    """Reduce images (B, 3, H, W) to coarse colours outside their regions (B, 1, H, W).

    The encoder analyses the result, since fine-tuning alone needs many steps to discard details of the background.
    """
    near = F.max_pool2d(weights, 2 * MARGIN + 1, 1, MARGIN).sqrt()
    height, width = original.shape[2:]
    squares = F.adaptive_avg_pool2d(original, (max(height // COARSE, 1), max(width // COARSE, 1)))
    coarse = F.interpolate(squares, (height, width), mode="bilinear")
    return coarse + near * (original - coarse)


def weighted_psnr(decoded: Tensor, original: Tensor, weights: Tensor) -> float:
    """PSNR in dB of images (3, H, W) in [0, 1], from the mean squared error under weights (H, W); at most 100."""
    error = ((decoded - original).square().mean(0) * weights).sum() / weights.sum().clamp_min(1e-10)
    return float(-10 * torch.log10(error.clamp_min(1e-10)))
