"""Masks in COCO's formats."""

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

MAX = 2.0**31  # of a coordinate, in pixels


def mask_of(segmentation: list | dict, height: int, width: int) -> Tensor:
    """bool (H, W) of polygons, or of run lengths {"size", "counts"}. One polygon may stand without a list around it;
    polygons of less than three points are empty. Raises ValueError for what is neither."""
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its size is {segmentation['size']}, not [{height}, {width}]")
        return _from_runs(segmentation["counts"], height, width)
    nested = any(isinstance(part, list) for part in segmentation)
    try:
        polygons = [np.asarray(polygon, np.float64) for polygon in (segmentation if nested else [segmentation])]
    except (TypeError, ValueError):
        polygons = [np.zeros((0, 0))]
    if any(polygon.ndim != 1 or len(polygon) % 2 or not np.isfinite(polygon).all() for polygon in polygons):
        raise ValueError("its polygons are not lists of numbers x, y, x, y, ...")
    drawn = [polygon.clip(-MAX, MAX).tolist() for polygon in polygons if len(polygon) >= 6]
    if not drawn:
        return torch.zeros(height, width, dtype=torch.bool)
    return torch.from_numpy(rle.decode(rle.merge(rle.frPyObjects(drawn, height, width)))).bool()


def _from_runs(counts: Sequence[int] | str, height: int, width: int) -> Tensor:
    """Alternate runs of pixels outside and inside, column by column."""
    try:
        lengths = np.asarray(_lengths(counts) if isinstance(counts, str) else counts, np.int64)
        whole = lengths.ndim == 1 and (lengths >= 0).all() and int(lengths.sum()) == height * width
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"its counts are not run lengths of {height * width} pixels")
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return torch.from_numpy(inside.reshape(width, height).T.copy())


def _lengths(text: str) -> list[int]:
    """Run lengths from COCO's text: numbers of 5 bits a character, the lowest first, two's complement, each from the
    third on as the difference to the one before the last."""
    lengths, at = list[int](), 0
    while at < len(text):
        number, shift, more = 0, 0, True
        while more:
            bits = ord(text[at]) - 48 if at < len(text) else -1
            if not 0 <= bits < 64:
                raise ValueError("no such character")
            number |= (bits & 31) << shift
            more, shift, at = bool(bits & 32), shift + 5, at + 1
        number -= (bits & 16) << (shift - 4)
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths
