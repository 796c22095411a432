"""What every latent coder has in common, and how a decoder on another machine picks the same tables.

A coder is the last part of a codec's entropy model: `codec.rate` estimates the bits of latents, `compress` writes them,
`decompress` reads them.

    latents {y, z, ...} --compress--> sections, CRC-32 of all symbols, hints
                        <-decompress--

Kinds: `mean_scale.MeanScale` (a hyperprior that predicts all of y at once).

Two machines must pick the same table for every symbol. Both evaluate what predicts it in float64 on the CPU, where
results differ by some 1e-14 of their size between threads, libraries and instruction sets. A scale nearer than MARGIN
to the boundary between two tables could fall on either side of it, so the encoder lists that symbol with the table it
took: a hint. All others are farther from every boundary than any two machines are apart. One symbol in 60 million has
a hint. The CRC over all symbols detects any remaining mismatch.
"""

import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

MARGIN = 1e-9  # of a scale: forty thousand times the effect of another order of sums in float64
HINT = np.dtype([("position", "<u4"), ("table", "u1")])  # of y in (M, h, w) order, row by row


@dataclass(frozen=True)
class CodedLatents:
    """Latents as a file holds them: their sections, CRC-32 of all symbols, and hints, most often none."""

    sections: Sequence[bytes]
    symbols_crc: int
    hints: bytes = b""


class LatentCoder(Protocol):
    """tables: the integer probability tables that sections are coded with; they are part of the codec's hash."""

    tables: Sequence[np.ndarray]

    def compress(self, latents: Mapping[str, Tensor]) -> CodedLatents:
        """The latents of one image, float32 (1, C, h, w) each, as `Codec.latents` gives them."""

    def decompress(self, coded: CodedLatents, size: tuple[int, int]) -> Tensor:
        """y_hat float32 (1, M, h, w) of an image of `size` (H, W) in pixels.

        Raises:
            BitstreamError: the bytes are damaged, or this machine's tables differ from the encoder's.
        """


def checksum(*symbols: np.ndarray) -> int:
    """CRC-32 of int32 arrays, one after another."""
    crc = 0
    for array in symbols:
        crc = zlib.crc32(np.ascontiguousarray(array, np.int32).tobytes(), crc)
    return crc


_made: weakref.WeakKeyDictionary[nn.Module, tuple[object, LatentCoder]] = weakref.WeakKeyDictionary()


def cached(make: Callable[[], LatentCoder], *modules: nn.Module) -> LatentCoder:
    """make(), whose result depends on these modules alone: kept until one of their tensors changes."""
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    state = [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
    known = _made.get(modules[0])
    if known is None or known[0] != state:
        known = _made[modules[0]] = state, make()
    return known[1]
