"""PGM and PPM, binary, with a maximum other than 255: at full depth, where Pillow reads colour at 8 bits."""

from typing import BinaryIO

import numpy as np

from lora_comp.data.pixels import Pixels, of_pillow, open_image

SIGNATURES = (b"P5", b"P6")


def read_ppm(file: BinaryIO) -> Pixels:
    """Raises what Pillow raises, and ValueError, for a corrupt file."""
    with open_image(file) as image:
        [tile] = image.tile
        if tile.codec_name != "ppm":
            return of_pillow(image)
        maximum, (width, height), count = tile.args[-1], image.size, len(image.getbands())
    file.seek(tile.offset)
    kind, needed = np.dtype(">u2" if maximum > 255 else "u1"), height * width * count
    data = file.read(needed * kind.itemsize)
    if len(data) < needed * kind.itemsize:
        raise ValueError("image file is truncated")
    samples = np.frombuffer(data, kind).reshape(height, width, count).astype(np.float32) / maximum
    if samples.max() > 1:
        raise ValueError(f"a sample is above the maximum of {maximum} that its header names")
    return Pixels(samples, "L" if count == 1 else "RGB")
