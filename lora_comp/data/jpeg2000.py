"""JPEG 2000 of depths other than 8 bits: Pillow shifts samples to 8 or 16 bits, so that white is below the maximum."""

from dataclasses import replace
from typing import BinaryIO

import numpy as np

from lora_comp.data.pixels import Pixels, check_samples, of_pillow, open_image

CODESTREAM = b"\xff\x4f\xff\x51"  # markers SOC and SIZ
SIGNATURES = (b"\0\0\0\x0cjP  ", CODESTREAM)
COMPONENTS = 40  # from SOC: their number in two bytes, then three bytes each, the first of which is the depth less one
SIGNED = 0x80


def read_jpeg2000(file: BinaryIO) -> Pixels:
    """Raises what Pillow raises, and ValueError for signed samples and for colour of more than 8 bits."""
    with open_image(file) as image:
        file.seek(0)
        data = file.read()
        at = data.find(CODESTREAM) + COMPONENTS
        count = int.from_bytes(data[at : at + 2], "big")
        depths = data[at + 2 : at + 2 + 3 * count : 3]
        bits = (depths[0] & ~SIGNED) + 1
        check_samples((2 if any(depth & SIGNED for depth in depths) else 1,), (bits,))
        if bits > 8 and image.mode != "I;16":
            raise ValueError(f"JPEG 2000 colour of {bits} bits is not decoded well by Pillow: white wraps to black")
        if len(set(depths)) > 1 or image.mode not in ("L", "LA", "RGB", "RGBA", "I;16"):
            return of_pillow(image)
        holds = 16 if image.mode == "I;16" else 8
        pixels = of_pillow(image)
    if bits == holds:
        return pixels
    scale = np.float32((2**holds - 1) / ((2**bits - 1) << (holds - bits)))
    alpha = None if pixels.alpha is None else pixels.alpha * scale
    return replace(pixels, samples=(pixels.samples * scale).clip(0, 1), alpha=alpha)
