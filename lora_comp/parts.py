"""A large image in parts. The synthesis and the task see one of them at a time, so that the memory which
fine-tuning takes does not grow with the image."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from lora_comp.codecs.tic import STRIDE
from lora_comp.errors import LoraCompError

SIDE = 1024  # pixels: the longest side of a part, if nothing else is asked for
GRID = 128  # pixels: parts begin at multiples of the coarsest attention windows, which so lie as in the whole image
LATENT = 16  # pixels to a latent, along each side

Distortion: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """A rectangle of the image, and the latents around it that the synthesis makes it of.

    image: its rows and columns.
    latents: rows and columns of y, with a margin of `GRID` pixels where the image goes on.
    own: rows and columns of what the synthesis makes of those.
    share: of the image's pixels.
    distortion: of the decoded (B, 3, h, w) of this part of each image, a tensor (B,).
    """

    image: tuple[slice, slice]
    latents: tuple[slice, slice]
    own: tuple[slice, slice]
    share: float
    distortion: Distortion


def in_parts(
    size: tuple[int, int],
    distortion_of: Callable[[slice, slice], Distortion],
    side: int = SIDE,
) -> list[Part]:
    """The parts of an image of `size` (H, W); one where no side is longer than `side`.

    Args:
        distortion_of: of the part at these rows and columns of the image.
        side: pixels, a multiple of `GRID`; LoraCompError for another.
    """
    if side < GRID or side % GRID:
        raise LoraCompError(f"a tile's side is a multiple of {GRID} pixels, as 256, not {side}")
    parts = []
    for rows in _cut(size[0], side):
        for columns in _cut(size[1], side):
            around = [_around(own, extent) for own, extent in zip((rows, columns), size, strict=True)]
            parts.append(
                Part(
                    image=(rows, columns),
                    latents=(
                        slice(around[0].start // LATENT, around[0].stop // LATENT),
                        slice(around[1].start // LATENT, around[1].stop // LATENT),
                    ),
                    own=(
                        slice(rows.start - around[0].start, rows.stop - around[0].start),
                        slice(columns.start - around[1].start, columns.stop - around[1].start),
                    ),
                    share=(rows.stop - rows.start) * (columns.stop - columns.start) / (size[0] * size[1]),
                    distortion=distortion_of(rows, columns),
                )
            )
    return parts


def _cut(extent: int, side: int) -> Iterator[slice]:
    count = math.ceil(extent / side)
    length = math.ceil(extent / count / GRID) * GRID
    for start in range(0, extent, length):
        yield slice(start, min(start + length, extent))


def _around(own: slice, extent: int) -> slice:
    padded = math.ceil(extent / STRIDE) * STRIDE
    return slice(max(own.start - GRID, 0), padded if own.stop == extent else min(own.stop + GRID, padded))
