"""TIFF: samples of any depth up to 16 bits, as their tags say what is black and what is white.

Uncompressed and losslessly compressed grey, RGB and CMYK are read here, by tifffile; palettes, YCbCr, L*a*b*, LZW, JPEG
and other compressions by Pillow.
"""

import logging
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from lora_comp.data.deep import is_deep, samples_of_16_bits
from lora_comp.data.pixels import Pixels, check_samples, check_size, of_pillow, open_image, turn

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5  # PhotometricInterpretation
MODES = {WHITE_IS_ZERO: "L", BLACK_IS_ZERO: "L", RGB: "RGB", CMYK: "CMYK"}
COUNTS = {"L": 1, "RGB": 3, "CMYK": 4}
UNCOMPRESSED = 1
PLAIN = (UNCOMPRESSED, 8, 32946, 32773, 34925)  # Deflate, PackBits and LZMA need no library beside Python's
PILLOWS = (*PLAIN, 2, 3, 4, 5, 6, 7, 32771, 50000)  # and CCITT, LZW, JPEG, ZSTD
MAX_EXTRA = 4  # channels beside the colours
PREMULTIPLIED, ALPHA = 1, (1, 2, 999)  # ExtraSamples; 999 is CorelDRAW's
ORIENTATION, PROFILE = 274, 34675  # tags
THUMBNAIL, CONTIGUOUS = 1, 1  # NewSubfileType, PlanarConfiguration

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # the error says what is wrong


def read_tiff(file: BinaryIO) -> Pixels:
    """The first page. Raises ValueError for what cannot be shown, and what tifffile and Pillow raise for a bad file."""
    import tifffile

    with tifffile.TiffFile(file) as opened:
        page: Any = opened.pages.first
        bits = _check(page)
        if page.photometric in MODES and page.compression in PLAIN and _unpackable(page, bits):
            return _pixels(page, turn(_values(page, bits), page.tags.valueof(ORIENTATION, 1)), bits)
        try:
            if page.compression not in PILLOWS:
                raise Image.UnidentifiedImageError
            file.seek(0)
            with open_image(file) as image:
                if page.planarconfig == CONTIGUOUS and is_deep(image):
                    return _pixels(page, samples_of_16_bits(file), bits)
                return of_pillow(image)
        except Image.UnidentifiedImageError:
            raise ValueError(f"{_described(page, bits)} has no decoder here; convert it to PNG") from None
        except OSError as error:  # libtiff's message names no cause
            raise ValueError(f"{error} ({_described(page, bits)})") from None


def _check(page: Any) -> int:
    """The bits of a sample. Raises ValueError for what has no agreed range, or is not an image."""
    check_size(page.imagewidth, page.imagelength)
    depths, formats = _as_tuple(page.bitspersample), _as_tuple(page.sampleformat)
    check_samples(formats, depths)
    bits = depths[0]
    if set(depths) != {bits}:
        raise ValueError(f"its samples have {', '.join(map(str, depths))} bits; convert it to equal depths")
    if page.imagedepth > 1:
        raise ValueError(f"it holds a volume of {page.imagedepth} slices; save one of them")
    if page.photometric in MODES:
        colours, extra = COUNTS[MODES[page.photometric]], _extra(page)
        several = colours == 1 and len(extra) > 1 and extra[0] not in ALPHA
        if several or not colours <= page.samplesperpixel <= colours + MAX_EXTRA:
            raise ValueError(f"it has {page.samplesperpixel} channels that are no colours; save three of them as RGB")
    if page.subfiletype & THUMBNAIL:
        raise ValueError("its first image is a thumbnail, as in camera raw files; develop it and save the result")
    return bits


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (int(value),)


def _described(page: Any, bits: int) -> str:
    names = [getattr(one, "name", str(one)) for one in (page.photometric, page.compression)]
    return f"TIFF with {page.samplesperpixel} samples of {bits} bits, photometric {names[0]}, compression {names[1]}"


def _unpackable(page: Any, bits: int) -> bool:
    return bits in (8, 16) or (page.compression == UNCOMPRESSED and not page.is_tiled)


def _pixels(page: Any, values: np.ndarray, bits: int) -> Pixels:
    """The pixels of samples (H, W, n) as the tags of the page describe them."""
    mode = MODES[page.photometric]
    samples, alpha = values[..., : COUNTS[mode]].astype(np.float32) / (2**bits - 1), None
    if page.photometric == WHITE_IS_ZERO:
        samples = 1 - samples
    extra = _extra(page)
    first = next((i for i, kind in enumerate(extra) if kind in ALPHA), None)
    if first is not None and COUNTS[mode] + first < values.shape[2]:
        alpha = values[..., COUNTS[mode] + first, None].astype(np.float32) / (2**bits - 1)
        if extra[first] == PREMULTIPLIED:
            samples = np.divide(samples, alpha, out=np.zeros_like(samples), where=alpha > 0).clip(0, 1)
    profile = page.tags.valueof(PROFILE)
    return Pixels(samples, mode, alpha, profile and bytes(profile))


def _extra(page: Any) -> tuple[int, ...]:
    """What the channels beside the colours are; alpha where the file does not say it."""
    return _as_tuple(page.extrasamples) or (ALPHA[1],) * (page.samplesperpixel - COUNTS[MODES[page.photometric]])


def _values(page: Any, bits: int) -> np.ndarray:
    """The samples as integers (H, W, n)."""
    whole = bits in (8, 16)
    planes = page.asarray(squeeze=False, maxworkers=1)[:, 0] if whole else _packed(page, bits)  # (planes, H, W, n)
    return planes[0] if len(planes) == 1 else planes[..., 0].transpose(1, 2, 0)


def _packed(page: Any, bits: int) -> np.ndarray:
    """Uncompressed samples of a depth that is not a multiple of 8: rows of bits, each padded to whole bytes."""
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    height, width, count = page.imagelength, page.imagewidth, page.samplesperpixel // planes
    row_bytes = -(-width * count * bits // 8)
    strips = [data for data, *_ in page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts)]
    rows_of = page.rowsperstrip
    per_plane = -(-height // rows_of)
    result = np.empty((planes, height, width * count), np.uint16)
    for i in range(planes * per_plane):
        top = i % per_plane * rows_of
        rows = min(rows_of, height - top)
        packed = np.frombuffer(strips[i], np.uint8, rows * row_bytes).reshape(rows, row_bytes)
        if page.fillorder == 2:
            packed = np.packbits(np.unpackbits(packed, axis=1, bitorder="little"), axis=1)
        result[i // per_plane, top : top + rows] = _unpacked(packed, bits, width * count)
    return result.reshape(planes, height, width, count)


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    unpacked = np.unpackbits(packed, axis=1)[:, : count * bits].reshape(len(packed), count, bits)
    values = np.zeros(unpacked.shape[:2], np.uint16)
    for bit in range(bits):
        values = np.left_shift(values, 1) | unpacked[..., bit]
    return values
