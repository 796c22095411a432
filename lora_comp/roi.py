"""Regions of interest: how much each pixel of an image counts.

A pixel of weight w, by its square root, comes from the decoded image, and for the rest from the original: so the task
sees no error where w is 0, and squared errors of pixels count w times.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_comp.data.images import read_image
from lora_comp.errors import LoraCompError
from lora_comp.objective import Distortion

BOXES = "boxes"
MARGIN = 8  # pixels around a region that are analysed with it
COARSE = 64  # pixels: what is left elsewhere is the mean colour of squares of this side


def region(roi: str, image: Tensor, task) -> Tensor:
    """The weights (H, W) in [0, 1] of an image (3, H, W).

    roi: "boxes", those of the objects that the task's network is sure of (all of the image where it finds none), or
    the path of an image of the same size, white where it matters.
    Raises LoraCompError where the task finds no objects, and ImageError for a mask that does not fit.
    """
    height, width = image.shape[1:]
    if roi != BOXES:
        mask = read_image(roi).mean(0)
        if mask.shape != (height, width):
            raise LoraCompError(
                f"{Path(roi).name} is {mask.shape[1]}x{mask.shape[0]}, the image {width}x{height}: a "
                "mask has a pixel for each of the image's"
            )
        return mask
    if not hasattr(task, "found"):
        raise LoraCompError(f"roi=boxes needs a task that finds objects, as task=det or task=[{task.name},det]")
    weights = torch.zeros(height, width)
    for one in task.found(image):
        if one["score"] >= task.sure:
            x, y, w, h = one["bbox"]
            weights[max(round(y), 0) : max(round(y + h), 0), max(round(x), 0) : max(round(x + w), 0)] = 1
    return weights if weights.any() else torch.ones(height, width)


def within(distortion: Distortion, original: Tensor, weights: Tensor) -> Distortion:
    """A distortion, of (B, 3, H, W), to which only what has weight (B, 1, H, W) matters."""
    return partial(_within, distortion, original, weights.sqrt())


def _within(distortion: Distortion, original: Tensor, shares: Tensor, decoded: Tensor) -> Tensor:
    return distortion(original + shares * (decoded - original))


def quiet(original: Tensor, weights: Tensor) -> Tensor:
    """Images (B, 3, H, W) that away from their regions (B, 1, H, W) are but colour: what to analyse, for fine-tuning
    alone would take long to unlearn what does not matter."""
    near = F.max_pool2d(weights, 2 * MARGIN + 1, 1, MARGIN).sqrt()
    height, width = original.shape[2:]
    squares = F.adaptive_avg_pool2d(original, (max(height // COARSE, 1), max(width // COARSE, 1)))
    coarse = F.interpolate(squares, (height, width), mode="bilinear")
    return coarse + near * (original - coarse)


def psnr_within(decoded: Tensor, original: Tensor, weights: Tensor) -> float:
    """PSNR in dB of (3, H, W) in [0, 1], its error the mean by these weights (H, W); 100 from 1e-5 down."""
    error = ((decoded - original).square().mean(0) * weights).sum() / weights.sum().clamp_min(1e-10)
    return float(-10 * torch.log10(error.clamp_min(1e-10)))
