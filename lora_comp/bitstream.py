"""The file format: a header, the coded sections, and a checksum over both. This module reads and writes bytes only.

====================  =========  ==================================================================================
field                 bytes      meaning
====================  =========  ==================================================================================
magic                 3          `LCZ`
version               1          2
flags                 1          bit 0: adapter hash present; bit 1: section of hints present; bit 2: payload present;
                                 bit 3: the decoder outputs features; bit 4: base present. Other bits are rejected.
quality               1          in sixteenths, 0 to 255
codec                 1 or 1+n   index of its name in CODECS; or 128 + n and n bytes of name
method                1 or 1+n   index of its name in METHODS; or 128 + n and n bytes of name
base                  0, 1, 1+n  the method that this one stands on, coded as that; only with bit 4
layer                 0 or 1+n   128 + n and the name of the layer of the features; only with bit 3
height - 1            1 to 5     varint, pixels
width - 1             1 to 5     varint, pixels
codec hash            4          hash of the codec's weights
adapter hash          0 or 4     hash of the pre-trained adapter; only with bit 0
base hash             0 or 4     hash of the adapter of the base; only with bit 4
symbols CRC           4          CRC-32 of the decoded symbols, little-endian
latent sections       1          number of latent sections, 1 to 255
section lengths       1 to 5 x   varint for each section, bytes
sections              lengths    latents, then the payload (bit 2), then the hints (bit 1)
CRC                   4          CRC-32 of all preceding bytes, little-endian
====================  =========  ==================================================================================

The payload of calice, which moves a frozen codec to another quality, is that quality: one byte, in sixteenths. With a
base, the payload of the file is a byte with the length of the base's payload, that payload, and the method's own.
A name has 1 to 32 ASCII letters, digits and, inside, `.`, `_`, `-`. A varint is LEB128 in its shortest form: seven bits
per byte from the lowest, the high bit set in all bytes but the last. So every header has exactly one encoding. All
section lengths are stored, so that a truncated file can be distinguished from a corrupt one.

>>> header = Header(height=512, width=768, codec="tic-v", quality=2, codec_hash=bytes(4), symbols_crc=0)
>>> data = write(header, Sections([b"z", b"latents"]))
>>> read(data) == (header, Sections([b"z", b"latents"]))
True
>>> read(data[:-1])
Traceback (most recent call last):
lora_comp.errors.BitstreamError: the file is truncated: it has 34 of the 35 bytes that its header declares
"""

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from lora_comp.errors import BitstreamError
from lora_comp.files import contents

MAGIC = b"LCZ"
VERSION = 2
MAX_PIXELS = 2**28  # default limit on the size of an image
# Names coded by their index; new ones go to the end. Other names are spelt out in the file.
METHODS = ("none", "svd_lora", "lora", "transtic", "alice", "duic", "calice", "icmh")
CODECS = ("tic", "tic-s", "tic-v", "stf", "stf-s", "cheng2020-attn", "cheng-s", "slim-s")
SIXTEENTHS = 16  # steps per rate point
MOVING = ("calice",)  # methods that move a frozen codec to another quality: their payload is that, in sixteenths

_HAS_ADAPTER, _HAS_HINTS, _HAS_PAYLOAD, _HAS_FEATURES, _HAS_BASE = 1, 2, 4, 8, 16
_KNOWN_FLAGS = 31
_HASH_BYTES = 4
_CRC_BYTES = 4
_VARINT_BYTES = 5
_CODED_SIDE = 64  # pixels: shorter sides are padded to this, so a thin image needs as much memory as a wide one
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,30}[A-Za-z0-9])?")  # never a path


@dataclass(frozen=True)
class Header:
    """The parameters of the decoder.

    height, width: of the image in pixels, 1 to 2^32
    codec: registered name, 1 to 32 ASCII letters, digits and, inside, `.`, `_` or `-`
    quality: rate point of the codec, 0 to 15.9375 in steps of 1/16
    codec_hash: 4 bytes, hash of the codec's weights
    symbols_crc: CRC-32 of the symbols of all latents, computed by the caller
    method: registered name, like that of a codec
    adapter_hash: 4 bytes, hash of the pre-trained adapter; None if the decoder needs none
    features: name of the layer whose features the decoder outputs; None if it outputs an image
    base: registered name of the method that this one stands on, and the hash of its adapter; None without one
    """

    height: int
    width: int
    codec: str
    quality: float
    codec_hash: bytes
    symbols_crc: int
    method: str = "none"
    adapter_hash: bytes | None = None
    features: str | None = None
    base: tuple[str, bytes] | None = None


@dataclass(frozen=True)
class Sections:
    """The coded data.

    latents: at least one section, in the order of the codec's latent coder
    payload: the method's transmitted updates; None if it transmits nothing
    hints: of the latent coder (`entropy.coder`), usually empty
    """

    latents: Sequence[bytes]
    payload: bytes | None = None
    hints: bytes = b""

    def all(self) -> list[bytes]:
        return [*self.latents, *([] if self.payload is None else [self.payload]), *([self.hints] if self.hints else [])]


def write(header: Header, sections: Sections) -> bytes:
    """The bytes of a file. Raises ValueError if a header field or the number of sections is out of range."""
    problem = _problem(header) or _problem_between(header, sections)
    if problem:
        raise ValueError(problem)
    flags = (
        (_HAS_ADAPTER if header.adapter_hash is not None else 0)
        | (_HAS_HINTS if sections.hints else 0)
        | (_HAS_PAYLOAD if sections.payload is not None else 0)
        | (_HAS_FEATURES if header.features is not None else 0)
        | (_HAS_BASE if header.base is not None else 0)
    )
    file = bytearray(MAGIC) + bytes([VERSION, flags, round(header.quality * SIXTEENTHS)])
    file += _coded_name(header.codec, CODECS) + _coded_name(header.method, METHODS)
    base, base_hash = header.base or ("", b"")
    file += _coded_name(base, METHODS) if base else b""
    file += b"" if header.features is None else _coded_name(header.features)
    file += _varint(header.height - 1) + _varint(header.width - 1)
    file += header.codec_hash + (header.adapter_hash or b"") + base_hash + header.symbols_crc.to_bytes(4, "little")
    file += bytes([len(sections.latents)])
    for section in sections.all():
        file += _varint(len(section))
    file += b"".join(sections.all())
    return bytes(file + zlib.crc32(file).to_bytes(_CRC_BYTES, "little"))


def read(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Header, Sections]:
    """The header and the sections of a file: the inverse of `write`.

    Whatever the header declares, only copies of parts of `data` are allocated.

    Raises BitstreamError, and nothing else, if the bytes are not a lora_comp file, are of another version, truncated,
    too long or corrupt, or declare an image of more than `max_pixels` pixels; sides below 64 count as 64.
    """
    if not data or not MAGIC.startswith(data[: len(MAGIC)]):
        raise BitstreamError("this is not a lora_comp file: it does not start with 'LCZ'")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise BitstreamError(
            f"the file has format version {data[len(MAGIC)]}, this lora_comp reads version {VERSION}; "
            "use the lora_comp that wrote it"
        )
    fields = _Fields(data, len(MAGIC) + 1)
    flags, quality = fields.take(2)
    codec, method = fields.name(CODECS), fields.name(METHODS)
    stands_on = fields.name(METHODS) if flags & _HAS_BASE else None
    features = fields.name(()) if flags & _HAS_FEATURES else None
    height, width = fields.varint() + 1, fields.varint() + 1
    codec_hash = fields.take(_HASH_BYTES)
    adapter_hash = fields.take(_HASH_BYTES) if flags & _HAS_ADAPTER else None
    base = None if stands_on is None else (stands_on, fields.take(_HASH_BYTES))
    symbols_crc = int.from_bytes(fields.take(4), "little")
    latents, payload, hints = fields.take(1)[0], bool(flags & _HAS_PAYLOAD), bool(flags & _HAS_HINTS)
    lengths = [fields.varint() for _ in range(latents + payload + hints)]

    _check_whole(data, fields.position + sum(lengths) + _CRC_BYTES)
    if flags & ~_KNOWN_FLAGS:
        raise BitstreamError(f"the file has flags {flags:#04x}, which this lora_comp does not support; update it")
    rate_point = quality / SIXTEENTHS
    header = Header(height, width, codec, rate_point, codec_hash, symbols_crc, method, adapter_hash, features, base)
    taken = [fields.take(length) for length in lengths]
    sections = Sections(
        taken[:latents],
        taken[latents] if payload else None,
        taken[-1] if hints else b"",
    )
    problem = fields.problem or _problem(header) or _problem_between(header, sections)
    if hints and not sections.hints:
        problem = "its hints are empty"
    if problem:
        raise BitstreamError(f"the file's header is not valid: {problem}")
    _check_pixels(height, width, max_pixels)
    return header, sections


def joined(base: bytes | None, own: bytes) -> bytes:
    """The payload of a file with a base, from that of the base, of 1 to 255 bytes or None, and the method's own."""
    return bytes([len(base or b"")]) + (base or b"") + own


def split(payload: bytes | None) -> tuple[bytes | None, bytes]:
    """The inverse of `joined`. Raises BitstreamError for a payload that is none of it."""
    if not payload or len(payload) <= payload[0]:
        raise BitstreamError("the file's payload does not have that of its base")
    end = 1 + payload[0]
    return payload[1:end] or None, payload[end:]


def is_magic(start: bytes) -> bool:
    """Whether a file that starts so is one of this format, of any version."""
    return start.startswith(MAGIC)


def info(data: bytes | str | os.PathLike) -> dict:
    """The header of a file, its bytes or its path, as a dict: sizes in pixels, bytes and bpp, for an image of any size.

    Raises BitstreamError as `read` does, and LoraCompError for a path that cannot be read.
    """
    data = contents(data)
    header, sections = read(data, max_pixels=2**64)
    first, *rest = map(len, sections.latents)
    sizes = {"bytes_z": first, "bytes_y": sum(rest)} if rest else {"bytes_y": first}
    if sections.payload is not None:
        sizes["bytes_adapter"] = len(sections.payload)
    if sections.hints:
        sizes["bytes_hints"] = len(sections.hints)
    moved = _of_moving(header, sections)
    quality = moved[0] / SIXTEENTHS if moved else header.quality
    return {
        "height": header.height,
        "width": header.width,
        "codec": header.codec,
        "quality": _number(quality),
        **({"frozen_quality": _number(header.quality)} if moved else {}),
        "method": header.method,
        "output": "image" if header.features is None else f"features of {header.features}",
        "codec_hash": header.codec_hash.hex(),
        "adapter": header.adapter_hash.hex() if header.adapter_hash else None,
        **({"base": header.base[0], "base_adapter": header.base[1].hex()} if header.base else {}),
        "bytes": len(data),
        "bpp": 8 * len(data) / (header.height * header.width),
        **sizes,
        "bytes_header": len(data) - sum(sizes.values()),
    }


def _of_moving(header: Header, sections: Sections) -> bytes | None:
    """The payload of the method in `MOVING` that a file has, if any."""
    if header.base and header.base[0] in MOVING:
        return split(sections.payload)[0]
    return sections.payload if header.method in MOVING else None


def _number(quality: float) -> float:
    return int(quality) if quality == int(quality) else quality


def _check_whole(data: bytes, declared: int) -> None:
    if len(data) < declared:
        raise BitstreamError(
            f"the file is truncated: it has {len(data)} of the {declared} bytes that its header declares"
        )
    if len(data) > declared:
        raise BitstreamError(f"the file is too long: it has {len(data)} bytes, but its header declares {declared}")
    if zlib.crc32(memoryview(data)[:-_CRC_BYTES]) != int.from_bytes(data[-_CRC_BYTES:], "little"):
        raise BitstreamError("the file is corrupt: its checksum does not match; get it again from its source")


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    longest = max(height, width)
    if height * width > max_pixels or (longest > _CODED_SIDE and longest * _CODED_SIDE > max_pixels):
        raise BitstreamError(
            f"the file declares {width}x{height} pixels, more than the {max_pixels} allowed (sides below "
            f"{_CODED_SIDE} count as {_CODED_SIDE}); raise max_pixels if you trust its source"
        )


def _problem(header: Header) -> str | None:
    """What is wrong with the values of a header, or None."""
    if not (1 <= header.height <= 2**32 and 1 <= header.width <= 2**32):
        return f"height and width must be 1 to 2^32, not {header.height} and {header.width}"
    base, base_hash = header.base or (None, None)
    names = {"codec": header.codec, "method": header.method, "base": base, "layer": header.features}
    for what, name in names.items():
        if name is not None and not _NAME.fullmatch(name):
            return f"{name!r} is not a {what} name: 1 to 32 ASCII letters, digits and, inside, '.', '_', '-'"
    sixteenths = header.quality * SIXTEENTHS
    if not 0 <= sixteenths <= 255 or sixteenths != round(sixteenths):
        return f"quality must be 0 to 15.9375 in steps of 1/16, not {header.quality}"
    hashes = header.codec_hash, header.adapter_hash, base_hash
    if any(len(item) != _HASH_BYTES for item in hashes if item is not None):
        return f"a hash must be {_HASH_BYTES} bytes"
    if not 0 <= header.symbols_crc < 2**32:
        return f"symbols_crc must be a CRC-32, not {header.symbols_crc}"
    return None


def _problem_between(header: Header, sections: Sections) -> str | None:
    if header.method == "none" and (header.adapter_hash is not None or sections.payload is not None):
        return "the method 'none' has neither adapter hash nor payload"
    if header.base is not None and "none" in (header.method, header.base[0]):
        return "the method 'none' has no base, and is none"
    if not 1 <= len(sections.latents) <= 255:
        return f"a file has 1 to 255 sections of latents, not {len(sections.latents)}"
    return None


def _coded_name(name: str, names: Sequence[str] = ()) -> bytes:
    return bytes([names.index(name)]) if name in names else bytes([128 + len(name)]) + name.encode("ascii")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    if len(encoded) > _VARINT_BYTES:
        raise ValueError("a section is too long for the format")
    return bytes(encoded)


class _Fields:
    """A reader of consecutive fields that never reads past the end."""

    def __init__(self, data: bytes, position: int):
        self.data = data
        self.position = position
        self.problem: str | None = None  # with a name; reported after the checksum is verified

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.position:
            raise BitstreamError(
                f"the file is truncated: it ends after {len(self.data)} bytes, inside its header; get it again"
            )
        self.position += count
        return bytes(self.data[self.position - count : self.position])

    def name(self, names: Sequence[str]) -> str:
        code = self.take(1)[0]
        if code < 128:
            if code < len(names):
                return names[code]
            self.problem = f"this lora_comp has no codec or method of code {code}"
            return ""
        name = self.take(code - 128).decode("ascii", "replace")
        if name in names:
            self.problem = f"the name {name} is spelt out, but has a code"
        return name

    def varint(self) -> int:
        value = 0
        for i in range(_VARINT_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                if byte == 0 and i > 0:
                    raise BitstreamError("the file is corrupt: a number is not in its shortest form")
                return value
        raise BitstreamError("the file is corrupt: a number takes more than five bytes")
