"""Image files of every depth, written by hand where no library writes them, and colour profiles."""

import struct
import zlib

import numpy as np


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples: np.ndarray, bits: int, colour: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """samples: integers (H, W, n); colour: PNG's colour type; chunks before and after the data."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row for row in packed(samples, bits))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + data + after + chunk(b"IEND", b"")


def packed(samples: np.ndarray, bits: int) -> list[bytes]:
    """Rows of samples, the first in the highest bits, each padded to whole bytes."""
    rows = samples.reshape(len(samples), -1)
    planes = (rows[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)
    return [row.tobytes() for row in np.packbits(planes.reshape(len(rows), -1), axis=1)]


def tiff(samples: np.ndarray, bits: int, photometric: int, order: int = 1, tags: dict[int, int] | None = None) -> bytes:
    """An uncompressed little-endian TIFF of samples (H, W, n), as `packed`; order: FillOrder, of the bits in a byte."""
    height, width, count = samples.shape
    data = b"".join(packed(samples, bits)) if bits != 16 else samples.astype("<u2").tobytes()
    if order == 2:
        data = data.translate(bytes(int(f"{value:08b}"[::-1], 2) for value in range(256)))
    data += bytes(len(data) % 2)
    depths = struct.pack(f"<{count}H", *[bits] * count)
    start = 8 + len(data) + len(depths) + len(depths) % 2
    values = {256: width, 257: height, 259: 1, 262: photometric, 266: order, 277: count, 278: height}
    entries = {tag: struct.pack("<HHII", tag, 3, 1, value) for tag, value in (values | (tags or {})).items()}
    where = bits if count == 1 else 8 + len(data)
    entries[258] = struct.pack("<HHII", 258, 3, count, where if count != 2 else bits | bits << 16)
    entries[273] = struct.pack("<HHII", 273, 4, 1, 8)
    entries[279] = struct.pack("<HHII", 279, 4, 1, len(data))
    directory = b"".join(entries[tag] for tag in sorted(entries))
    body = b"II*\0" + struct.pack("<I", start) + data + depths + bytes(len(depths) % 2)
    return body + struct.pack("<H", len(entries)) + directory + bytes(4)


SRGB = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139))  # columns of RGB to XYZ, D50
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
WHITE = (0.9642, 1.0, 0.8249)


def srgb_curve(steps: int = 1024) -> bytes:
    """An ICC curve of values in a table, as in the profile of sRGB that most files hold."""
    x = np.linspace(0, 1, steps)
    y = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv" + struct.pack(">II", 0, steps) + np.rint(y * 65535).astype(">u2").tobytes()


def gamma_curve(gamma: float) -> bytes:
    return b"curv" + struct.pack(">II", 0, 1) + struct.pack(">H", round(gamma * 256)) + bytes(2)


def profile(columns: tuple | None, curve: bytes) -> bytes:
    """An ICC profile of version 2: of RGB with these colours of its primaries, or of grey (None)."""

    def xyz(values: tuple) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    tags = {b"wtpt": xyz(WHITE), b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"a\0" + bytes(78)}
    if columns is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {name + b"XYZ": xyz(column) for name, column in zip((b"r", b"g", b"b"), columns, strict=True)}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    table, data, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        table += name + struct.pack(">II", at + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    space = b"GRAY" if columns is None else b"RGB "
    head = struct.pack(">I4sI4s4s4s", at + len(data), bytes(4), 0x02100000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(value * 65536) for value in WHITE))
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + data
