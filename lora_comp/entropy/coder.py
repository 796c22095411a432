"""The interface of latent coders, and how decoders on all machines select the same tables.

`codec.rate` estimates the bits of latents, `compress` writes them, `decompress` reads them.

    latents {y, z, ...} --compress--> sections, CRC-32 of all symbols, hints
                        <-decompress--

Implementations: `hyperprior.HyperpriorCoder` (y in the steps of an `entropy.prior.Prior`).

Encoder and decoder must select the same table for every symbol. Both evaluate the hyper-synthesis in float64 on the
CPU, where results differ by about 1e-14 relative between thread counts, libraries and instruction sets. For a scale
within MARGIN of the boundary between two tables, the encoder signals the table explicitly, as a hint. All other scales
are farther from a boundary than this error. One symbol in 60 million has a hint. A CRC over all symbols detects any
remaining mismatch. A prior of many steps rounds what it feeds back to a grid, with hints of the same kind (`grid`); the
CRC is then over y_hat too.
"""

import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

MARGIN = 1e-9  # relative to the scale; forty thousand times the effect of reordered float64 sums
HINT = np.dtype([("position", "<u4"), ("choice", "u1")])  # position in y (M, h, w), in C order
# The choice is the table of a scale, or what a value was rounded to: one of these two, plus 1 where it was rounded up.
MEAN, REFINED = 64, 66


@dataclass(frozen=True)
class CodedLatents:
    """Coded latents: their sections, the CRC-32 of all symbols, and hints, usually none."""

    sections: Sequence[bytes]
    symbols_crc: int
    hints: bytes = b""


class LatentCoder(Protocol):
    """tables: the integer probability tables of the sections; they are part of the codec's hash."""

    tables: Sequence[np.ndarray]

    def compress(self, latents: Mapping[str, Tensor]) -> CodedLatents:
        """Code the latents of one image, float32 (1, C, h, w) each, from `Codec.latents`."""

    def decompress(self, coded: CodedLatents, size: tuple[int, int]) -> Tensor:
        """Decode y_hat, float32 (1, M, h, w), of an image of `size` (H, W) in pixels.

        Raises:
            BitstreamError: the bytes are corrupt, or this machine's tables differ from the encoder's.
        """


def checksum(*symbols: np.ndarray) -> int:
    """CRC-32 of concatenated int32 arrays."""
    crc = 0
    for array in symbols:
        crc = zlib.crc32(np.ascontiguousarray(array, np.int32).tobytes(), crc)
    return crc


_made: weakref.WeakKeyDictionary[nn.Module, tuple[object, LatentCoder]] = weakref.WeakKeyDictionary()


def cached(make: Callable[[], LatentCoder], *modules: nn.Module) -> LatentCoder:
    """make(), cached until a tensor of these modules changes."""
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    state = [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
    entry = _made.get(modules[0])
    if entry is None or entry[0] != state:
        entry = _made[modules[0]] = state, make()
    return entry[1]
