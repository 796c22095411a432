"""PNG, beyond what Pillow reads: colour of 16 bits at full depth, a transparent colour of any depth, and text of any
length, which is skipped."""

import io
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile

from lora_comp.data.deep import samples_of_16_bits
from lora_comp.data.pixels import Pixels, of_pillow, of_samples, opaque_but, open_image, turn

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIGNATURES = (SIGNATURE,)
TEXT = (b"iTXt", b"tEXt", b"zTXt")
ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts in which Pillow finds a rotation
PROFILE, MAX_PROFILE = b"iCCP", 1 << 24  # bytes
GREY = 0  # colour type


def read_png(file: BinaryIO) -> Pixels:
    """Raises what Pillow raises, and ValueError, for a corrupt file."""
    header = file.read(26)
    file.seek(0)
    image, file = _open(file)
    with image:
        depth, colour = header[24], header[25]
        if depth == 16 and colour != GREY:
            return _deep(file, image)
        key = image.info.get("transparency")
        if depth in (2, 4) and colour == GREY and isinstance(key, int):
            image.info["transparency"] = key * 255 // (2**depth - 1)  # as Pillow scales the samples
        return of_pillow(image)


def _open(file: BinaryIO) -> tuple[ImageFile.ImageFile, BinaryIO]:
    """A decoded image and its file; of a file with more text, or a larger profile, than Pillow takes, one without."""
    try:
        image = open_image(file)
        image.load()
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        file.seek(0)
        profile, chunks = None, [SIGNATURE]
        for kind, chunk in _chunks(file.read()):
            if kind == PROFILE:
                packed = chunk[8:-4].partition(b"\0")[2][1:]  # after a name and the number of the method
                profile = zlib.decompressobj().decompress(packed, MAX_PROFILE)
            elif kind not in TEXT or chunk.startswith(ORIENTATION, 8):
                chunks.append(chunk)
        file = io.BytesIO(b"".join(chunks))
        image = open_image(file)
        image.load()
        image.info["icc_profile"] = profile
    return image, file


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the whole of each chunk."""
    at = len(SIGNATURE)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at:end]
        at = end


def _deep(file: BinaryIO, image: Image.Image) -> Pixels:
    """Several samples of 16 bits per pixel. image: the same file as Pillow decodes it."""
    values = turn(samples_of_16_bits(file), image.getexif().get(ExifTags.Base.Orientation, 1))
    samples = values.astype(np.float32) / 65535
    pixels = of_samples(samples, image.info.get("icc_profile"))
    key = image.info.get("transparency")
    return pixels if key is None else replace(pixels, alpha=opaque_but(values, key))
