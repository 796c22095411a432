"""The file format: a header, the coded sections, and a checksum over both. This module knows bytes and nothing else.

====================  ========  ==================================================================================
field                 bytes     meaning
====================  ========  ==================================================================================
magic                 3         `LCZ`
version               1         1
flags                 1         bit 0: an adapter hash follows the codec hash; bit 1: there is a section of table
                                hints; the other bits are 0
rate point, method    1         high four bits: quality; low four bits: position of the method in METHODS
height - 1            1 to 5    varint, pixels
width - 1             1 to 5    varint, pixels
codec name            1 + n     n in a byte (1 to 32), then n ASCII letters, digits and, inside, `.`, `_`, `-`
codec hash            4         of the weights that the decoder needs
adapter hash          0 or 4    of the pre-trained adapter that the deltas build on; only if bit 0 of the flags is set
symbols CRC           4         CRC-32 of the decoded symbols, little-endian: a decoder that disagrees finds out
section lengths       1 to 5 x  a varint for each section: z, y, unless the method is `none` the method's deltas, and
                                if bit 1 of the flags is set the hints (entropy/latents.py)
sections              lengths   z, y, deltas, hints
CRC                   4         CRC-32 of all bytes before it, little-endian
====================  ========  ==================================================================================

A varint is LEB128: seven bits a byte from the lowest, the high bit set in all bytes but the last, in its shortest form.
So a header and its sections have one encoding only. All lengths are written, the last one too, because a reader that
knows how long the file should be can tell a cut file from an altered one.

>>> header = Header(height=512, width=768, codec="tic-s", quality=2, codec_hash=bytes(4), symbols_crc=0)
>>> data = write(header, [b"z", b"latents"])
>>> read(data) == (header, [b"z", b"latents"])
True
>>> read(data[:-1])
Traceback (most recent call last):
lora_comp.errors.BitstreamError: the file is cut short: 37 bytes are there, its header declares 38
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from lora_comp.errors import BitstreamError

MAGIC = b"LCZ"
VERSION = 1
MAX_PIXELS = 2**28  # of an image, unless the reader is told otherwise
METHODS = ("none", "svd_lora", "lora", "transtic", "duic", "alice", "slimmable")  # the position is the code in the file

_HAS_ADAPTER = 1
_HAS_HINTS = 2
_HASH_BYTES = 4
_CRC_BYTES = 4
_VARINT_BYTES = 5
_CODED_SIDE = 64  # pixels: a shorter side is coded as this many, so a thin image takes what a broad one does
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,30}[A-Za-z0-9])?")  # never a path: it will be looked up


@dataclass(frozen=True)
class Header:
    """What a decoder must know before it can read the sections.

    height, width: of the image, in pixels, 1 to 2^32
    codec: name in the registry, 1 to 32 ASCII letters, digits and, between them, `.`, `_` or `-`
    quality: rate point, 0 to 15
    codec_hash: 4 bytes, of the codec's weights
    symbols_crc: CRC-32 of the latents' symbols, computed by the caller
    method: one of METHODS
    adapter_hash: 4 bytes, of the pre-trained adapter; None if there is none, as with the method "none"
    hints: whether the last section says which tables some latents were coded with
    """

    height: int
    width: int
    codec: str
    quality: int
    codec_hash: bytes
    symbols_crc: int
    method: str = "none"
    adapter_hash: bytes | None = None
    hints: bool = False


def section_count(header: Header) -> int:
    """How many sections the file has: z and y, the deltas of a method that adapts, and the hints."""
    return 2 + (header.method != "none") + header.hints


def write(header: Header, sections: Sequence[bytes]) -> bytes:
    """The whole file. Raises ValueError for a header field out of range or a wrong number of sections."""
    problem = _problem(header)
    if problem:
        raise ValueError(problem)
    if len(sections) != section_count(header):
        raise ValueError(
            f"method {header.method!r}, hints {header.hints}: the file has {section_count(header)} "
            f"sections, but {len(sections)} were given"
        )
    file = bytearray(MAGIC)
    file += bytes(
        [
            VERSION,
            (_HAS_ADAPTER if header.adapter_hash is not None else 0) | (_HAS_HINTS if header.hints else 0),
            header.quality << 4 | METHODS.index(header.method),
        ]
    )
    file += _varint(header.height - 1) + _varint(header.width - 1)
    file += bytes([len(header.codec)]) + header.codec.encode("ascii")
    file += header.codec_hash + (header.adapter_hash or b"") + header.symbols_crc.to_bytes(4, "little")
    for section in sections:
        file += _varint(len(section))
    file += b"".join(sections)
    return bytes(file + zlib.crc32(file).to_bytes(_CRC_BYTES, "little"))


def read(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Header, list[bytes]]:
    """The header and the sections of a file: the inverse of `write`.

    Nothing is allocated beyond copies of parts of `data`, whatever the header declares.

    Raises BitstreamError, and nothing else, for bytes that are not a lora_comp file, of another version, cut short,
    with extra bytes, altered, or that declare an image of more than `max_pixels` pixels, a side shorter than the 64
    that it is coded as counted as 64.
    """
    if not data or not MAGIC.startswith(data[: len(MAGIC)]):
        raise BitstreamError("this is not a lora_comp file: it does not begin with 'LCZ'")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise BitstreamError(
            f"the file has format version {data[len(MAGIC)]}, this lora_comp reads version {VERSION}; "
            "use the lora_comp that wrote it"
        )
    fields = _Fields(data, len(MAGIC) + 1)
    flags, quality_method = fields.take(2)
    height, width = fields.varint() + 1, fields.varint() + 1
    codec = fields.take(fields.take(1)[0])
    codec_hash = fields.take(_HASH_BYTES)
    adapter_hash = fields.take(_HASH_BYTES) if flags & _HAS_ADAPTER else None
    symbols_crc = int.from_bytes(fields.take(4), "little")
    method_code = quality_method & 15
    lengths = [fields.varint() for _ in range(2 + bool(method_code) + bool(flags & _HAS_HINTS))]

    _check_whole(data, fields.position + sum(lengths) + _CRC_BYTES)
    if flags & ~(_HAS_ADAPTER | _HAS_HINTS) or method_code >= len(METHODS):
        raise BitstreamError(
            f"the file uses flags {flags:#04x} and method {method_code}, which this lora_comp does not know; update it"
        )
    header = Header(
        height,
        width,
        codec.decode("ascii", "replace"),
        quality_method >> 4,
        codec_hash,
        symbols_crc,
        METHODS[method_code],
        adapter_hash,
        bool(flags & _HAS_HINTS),
    )
    problem = _problem(header)
    if problem:
        raise BitstreamError(f"the file's header is not valid: {problem}")
    longest = max(height, width)
    if height * width > max_pixels or (longest > _CODED_SIDE and longest * _CODED_SIDE > max_pixels):
        raise BitstreamError(
            f"the file declares {width}x{height} pixels, more than the {max_pixels} allowed (where a side counts as "
            f"{_CODED_SIDE} at least); raise max_pixels if you trust its source"
        )
    return header, [fields.take(length) for length in lengths]


def info(data: bytes) -> dict:
    """What a file's header says, without decoding it: sizes in pixels, bytes and bpp. No image is too large.

    Raises BitstreamError as `read` does.
    """
    header, sections = read(data, max_pixels=2**64)
    names = ["bytes_z", "bytes_y"] + ["bytes_adapter"] * (header.method != "none") + ["bytes_hints"] * header.hints
    return {
        "height": header.height,
        "width": header.width,
        "codec": header.codec,
        "quality": header.quality,
        "method": header.method,
        "codec_hash": header.codec_hash.hex(),
        "adapter": header.adapter_hash.hex() if header.adapter_hash else None,
        "bytes": len(data),
        "bpp": 8 * len(data) / (header.height * header.width),
        **dict(zip(names, map(len, sections), strict=True)),
        "bytes_header": len(data) - sum(map(len, sections)),
    }


def _check_whole(data: bytes, declared: int) -> None:
    if len(data) < declared:
        raise BitstreamError(f"the file is cut short: {len(data)} bytes are there, its header declares {declared}")
    if len(data) > declared:
        raise BitstreamError(f"the file has extra bytes: {len(data)} are there, its header declares {declared}")
    if zlib.crc32(memoryview(data)[:-_CRC_BYTES]) != int.from_bytes(data[-_CRC_BYTES:], "little"):
        raise BitstreamError("the file is altered: its checksum does not match; get it again from its source")


def _problem(header: Header) -> str | None:
    """What is wrong with the values of a header, or None."""
    if not (1 <= header.height <= 2**32 and 1 <= header.width <= 2**32):
        return f"height and width must be 1 to 2^32, not {header.height} and {header.width}"
    if not _NAME.fullmatch(header.codec):
        return f"{header.codec!r} is no codec name; it takes 1 to 32 ASCII letters, digits and, inside, '.', '_', '-'"
    if not 0 <= header.quality <= 15:
        return f"quality must be 0 to 15, not {header.quality}"
    if header.method not in METHODS:
        return f"unknown method {header.method!r}; known are {', '.join(METHODS)}"
    if header.method == "none" and header.adapter_hash is not None:
        return "the method 'none' has no adapter hash"
    if any(len(known) != _HASH_BYTES for known in (header.codec_hash, header.adapter_hash) if known is not None):
        return f"a hash must be {_HASH_BYTES} bytes"
    if not 0 <= header.symbols_crc < 2**32:
        return f"symbols_crc must be a CRC-32, not {header.symbols_crc}"
    return None


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    if len(encoded) > _VARINT_BYTES:
        raise ValueError("a section is longer than the format can say")
    return bytes(encoded)


class _Fields:
    """A place in the data that moves on with every field taken, and never past the end."""

    def __init__(self, data: bytes, position: int):
        self.data = data
        self.position = position

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.position:
            raise BitstreamError(
                f"the file is cut short: it ends after {len(self.data)} bytes, inside its header; get it again"
            )
        self.position += count
        return bytes(self.data[self.position - count : self.position])

    def varint(self) -> int:
        value = 0
        for i in range(_VARINT_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                if byte == 0 and i > 0:
                    raise BitstreamError("the file is altered: a number is not in its shortest form")
                return value
        raise BitstreamError("the file is altered: a number takes more than five bytes")
