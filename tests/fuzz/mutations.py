"""Mutations of coded files: blind ones, ones of header fields, and ones of sections under a matching header.

A mutant depends only on (files, seed, index), so that runs can be split and findings repeated.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SIDES = (1, 2, 63, 64, 65, 128, 129, 192, 256, 1000, 4096, 16384, 16385, 65536, 2**22, 2**28, 2**28 + 1, 2**31, 2**32)
NAMES = (
    b"tic-m",
    b"",
    b"..",
    b"../tic-v",
    b"/etc/passwd",
    b"tic-v\0",
    b"a" * 32,
    b"a" * 33,
    b"\xff",
    b"TIC-S",
    b"tic-v-q2",
    b"a..b",
)


@dataclass
class Parts:
    """The parts of a file. `fields` has the bytes of the header fields in order, including lengths."""

    fields: dict[str, bytes]
    sections: list[bytes]

    def join(self, fitting: bool) -> bytes:
        """The file with a valid CRC; with `fitting`, also with valid section lengths."""
        fields = dict(self.fields)
        if fitting:
            fields |= {f"length {i}": varint(len(section)) for i, section in enumerate(self.sections)}
        return with_crc(b"".join(fields.values()) + b"".join(self.sections))


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def with_crc(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def split(data: bytes) -> Parts:
    """Split a valid file into its parts."""
    fields, at = {}, 0

    def take(name: str, count: int | None = None) -> bytes:
        nonlocal at
        end = at
        if count is None:
            while data[end] > 127:
                end += 1
            count = end + 1 - at
        fields[name] = data[at : at + count]
        at += count
        return fields[name]

    take("magic", 3)
    take("version", 1)
    flags, _ = take("flags", 1)[0], take("quality", 1)
    for name in ("codec", "method", *(["base"] if flags & 16 else []), *(["layer"] if flags & 8 else [])):
        take(name, 1 + max(data[at] - 128, 0))
    take("height")
    take("width")
    take("codec hash", 4)
    if flags & 1:
        take("adapter hash", 4)
    if flags & 16:
        take("base hash", 4)
    take("symbols CRC", 4)
    latents = take("latent sections", 1)[0]
    lengths = []
    for i in range(latents + bool(flags & 4) + bool(flags & 2)):
        encoded = take(f"length {i}")
        lengths.append(sum((byte & 127) << 7 * place for place, byte in enumerate(encoded)))
    sections = []
    for length in lengths:
        sections.append(data[at : at + length])
        at += length
    parts = Parts(fields, sections)
    assert parts.join(fitting=True) == data, "not a valid file"
    return parts


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(1 + int(rng.expovariate(0.5))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    count = min(1 + int(rng.expovariate(0.3)), len(data) - at)
    value = rng.choice([b"\0", b"\xff", b"\x80", b"\x7f", None])
    return data[:at] + (value * count if value else rng.randbytes(count)) + data[at + count :]


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def delete(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + 1 + int(rng.expovariate(0.2)) :]


def insert(rng: random.Random, data: bytes) -> bytes:
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    count = 1 + int(rng.expovariate(rng.choice([0.5, 0.02])))
    return data[:at] + (rng.randbytes(count) if rng.random() < 0.6 else data[start : start + count]) + data[at:]


CHANGES: Sequence[Callable[[random.Random, bytes], bytes]] = (flip_bits, set_bytes, cut, delete, insert)


def changed(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        data = rng.choice(CHANGES)(rng, data)
    return data


def blind(rng: random.Random, data: bytes, others: Sequence[Parts]) -> bytes:
    """A random change at a random place, like that of a bad disk or an incomplete download."""
    return changed(rng, data)


def blind_with_crc(rng: random.Random, data: bytes, others: Sequence[Parts]) -> bytes:
    return with_crc(changed(rng, data[:-4]))


def edited_header(rng: random.Random, data: bytes, others: Sequence[Parts]) -> bytes:
    """Change one or two header fields; the CRC is valid in five of six files."""
    parts = split(data)
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(list(parts.fields))
        parts.fields[name] = edited_field(rng, name, parts.fields[name])
    data = parts.join(fitting=False)
    return data if rng.random() < 5 / 6 else data[:-4] + rng.randbytes(4)


def edited_field(rng: random.Random, name: str, value: bytes) -> bytes:
    kind = rng.random()
    if kind < 0.1:
        return changed(rng, value)
    if name in ("height", "width"):
        return varint(rng.choice(SIDES) - 1 if kind < 0.8 else rng.randrange(2**36))
    if name in ("codec", "method", "layer"):
        chosen = rng.choice(NAMES)
        return bytes([128 + len(chosen)]) + chosen if kind < 0.7 else bytes([rng.randrange(10)])
    if name == "adapter hash" and kind < 0.7:  # a seeded adapter of any rank
        return bytes([0, rng.choice([0, 1, 3, 16, 17, 255]), rng.randrange(256), rng.randrange(256)])
    if name.startswith("length"):
        return varint(rng.choice([0, 1, rng.randrange(2000), rng.randrange(2 ** rng.randrange(1, 36))]))
    return rng.randbytes(len(value))


def edited_section(rng: random.Random, data: bytes, others: Sequence[Parts]) -> bytes:
    """Damage or replace a section under valid lengths and CRC, so that it reaches the coder.

    The last section of an adapted file is only reached after valid latents, and takes ten times as long.
    """
    parts = split(data)
    which = rng.choice([0, 1, 1, 1])
    if len(parts.sections) > 2 and rng.random() < 0.1:
        which = rng.randrange(2, len(parts.sections))
    how = rng.random()
    if how < 0.7:
        parts.sections[which] = changed(rng, parts.sections[which])
    elif how < 0.8:  # other numbers of lanes, blocks and escapes
        parts.sections[which] = bytes([rng.randrange(64)]) + parts.sections[which][1:]
    elif how < 0.95:
        parts.sections[which] = rng.choice(rng.choice(others).sections)
    else:
        parts.sections[which] = rng.randbytes(rng.randrange(300))
    return parts.join(fitting=True)


KINDS: dict[str, tuple[float, Callable[[random.Random, bytes, Sequence[Parts]], bytes]]] = {
    "bytes": (0.2, blind),
    "bytes, right CRC": (0.15, blind_with_crc),
    "header": (0.25, edited_header),
    "section, right lengths and CRC": (0.4, edited_section),
}


class Mutants:
    """Mutants of valid files, by index."""

    def __init__(self, files: Sequence[bytes], seed: int = 0):
        self.files, self.seed = files, seed
        self.parts = [split(data) for data in files]
        self.weights = [weight for weight, _ in KINDS.values()]

    def __getitem__(self, index: int) -> tuple[str, bytes]:
        """The kind of mutation, and the mutated file."""
        rng = random.Random(self.seed << 64 | index)
        kind = rng.choices(list(KINDS), self.weights)[0]
        return kind, KINDS[kind][1](rng, rng.choice(self.files), self.parts)
