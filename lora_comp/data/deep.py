"""Colour of 16 bits per sample at full depth, from Pillow, which keeps 8 of them.

Pillow keeps the byte that its raw mode, as "RGB;16B", takes for the upper one; decoding again in the other byte order
gives the lower one.
"""

import sys
from typing import Any, BinaryIO

import numpy as np
from PIL import ImageFile

from lora_comp.data.pixels import open_image

NATIVE = "L" if sys.byteorder == "little" else "B"
GREY_ALPHA = "LA;16B"


def samples_of_16_bits(file: BinaryIO) -> np.ndarray:
    """The samples of an image that Pillow opens with a raw mode of 16 bits, uint16 (H, W, n), not premultiplied."""
    upper, lower = _decoded(file, False), _decoded(file, True)
    if upper.dtype == np.int32:  # grey in the upper half, alpha in the lower
        return np.ascontiguousarray(upper).view(np.uint16).reshape(*upper.shape, 2)[..., :: -1 if NATIVE == "L" else 1]
    return upper.astype(np.uint16) << 8 | lower


def is_deep(image: ImageFile.ImageFile) -> bool:
    return bool(image.tile) and image.mode in ("RGB", "RGBA", "CMYK") and ";16" in _raw_mode(image.tile[0])


def _decoded(file: BinaryIO, other_order: bool) -> np.ndarray:
    file.seek(0)
    with open_image(file) as image:
        if _raw_mode(image.tile[0]) == GREY_ALPHA:
            image._mode = "I"  # Pillow has no other way to ask for 32 bits
            image.tile = [tile._replace(args="I;32B") for tile in image.tile]
        else:
            image.tile = [tile._replace(args=_args(tile, other_order)) for tile in image.tile]
        image.load()
        return np.asarray(image)


def _raw_mode(tile: Any) -> str:
    return tile.args if isinstance(tile.args, str) else str(tile.args[0])


def _args(tile: Any, other_order: bool) -> Any:
    """The arguments of the decoder, for samples as they are stored, in their byte order or in the other one."""
    mode = _raw_mode(tile).replace("RGBa", "RGBA")
    order = mode[-1].replace("N", NATIVE)
    if other_order:
        order = "B" if order == "L" else "L"
    mode = mode[:-1] + order
    return mode if isinstance(tile.args, str) else (mode, *tile.args[1:])
