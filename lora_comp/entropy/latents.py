"""From latents to bytes and back.

    y, z --round--> z symbols --rANS, a table a channel--> bytes of z
                       |
                      h_s in float64 --> scales: which table;  means: what y is rounded about
                                             |
                                         y symbols --rANS, a table a scale--> bytes of y
                                             `-> hints: the tables of scales that lie next to a bound between two

Two machines must pick the same table for every y. Both evaluate the hyper synthesis in float64 on the CPU, where their
scales differ by some 1e-14 of their size, whatever their threads, libraries and instruction sets. A scale nearer than
MARGIN to a bound could fall on either side of it, so the encoder lists such a latent with the table it took, and the
decoder takes that one. All others are farther from every bound than any two machines are apart. One latent in 60
million is listed. A checksum over all symbols catches whatever else may go wrong.
"""

import copy
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lora_comp import _C, rans
from lora_comp.entropy.tables import BETWEEN, bottleneck_tables, gaussian_tables
from lora_comp.errors import BitstreamError

if TYPE_CHECKING:
    from lora_comp.codecs import Codec


MARGIN = 1e-9  # of a scale: forty thousand times what another order of sums in float64 changes
HINT = np.dtype([("position", "<u4"), ("table", "u1")])  # of y in (M, h, w) order, row by row


@dataclass(frozen=True)
class CodedLatents:
    """The sections of a file: bytes of z, of y and of the hints, most often none; and CRC-32 of the symbols."""

    z: bytes
    y: bytes
    symbols_crc: int
    hints: bytes = b""


class LatentCoder:
    """Codes y and z of one image with a codec's probability models.

    Args:
        codec: has h_s, entropy_bottleneck, medians, N and M as `codecs.tic.TIC`.
    """

    def __init__(self, codec: "Codec"):
        self.h_s = copy.deepcopy(codec.h_s).double().cpu()
        self.medians = codec.medians.double().cpu()[:, None, None]  # (N, 1, 1)
        self.z_tables = bottleneck_tables(codec.entropy_bottleneck)
        self.N, self.M = codec.N, codec.M

    def compress(self, y: Tensor, z: Tensor) -> CodedLatents:
        """y float32 (1, M, h, w) and z float32 (1, N, ceil(h / 4), ceil(w / 4)) of one image."""
        z_symbols = (z[0].detach().double().cpu() - self.medians).round().numpy().astype(np.int32)
        means, scales = self.predict(z_symbols)
        y_symbols = np.empty(means.shape, np.int32)
        coded, hints = _C.encode_latents(
            y[0].detach().float().cpu().contiguous().numpy(),
            means,
            scales,
            BETWEEN,
            *gaussian_tables(),
            MARGIN,
            y_symbols,
            torch.get_num_threads(),
        )
        coded_z = rans.encode(z_symbols, self.channels(z_symbols.shape), *self.z_tables)
        return CodedLatents(coded_z, coded, checksum(z_symbols, y_symbols), np.array(hints, HINT).tobytes())

    def decompress(self, coded: CodedLatents, height: int, width: int) -> Tensor:
        """y_hat float32 (1, M, 4 height, 4 width) where z is `height` by `width`.

        Raises:
            BitstreamError: the bytes are damaged, or this machine's tables differ from the encoder's.
        """
        if len(coded.hints) % HINT.itemsize:
            raise BitstreamError("the hints of the file end early: the file is damaged")
        if len(coded.hints) > HINT.itemsize * 16 * self.M * height * width:
            raise BitstreamError("the file has more hints than latents: the file is damaged")
        hints = np.frombuffer(coded.hints, HINT).tolist()
        z_symbols = rans.decode(coded.z, self.channels((self.N, height, width)), *self.z_tables)
        means, scales = self.predict(z_symbols)
        y_symbols, y_hat = np.empty(means.shape, np.int32), np.empty(means.shape, np.float32)
        _C.decode_latents(
            coded.y, means, scales, BETWEEN, *gaussian_tables(), hints, y_symbols, y_hat, torch.get_num_threads()
        )
        if checksum(z_symbols, y_symbols) != coded.symbols_crc:
            raise BitstreamError("the decoded latents differ from the encoded ones: the file is damaged")
        return torch.from_numpy(y_hat)[None]

    @torch.no_grad()
    def predict(self, z_symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int32 (N, h, w) to the means and scales of y, each float64 (M, 4h, 4w)."""
        z_hat = torch.from_numpy(z_symbols).double() + self.medians
        scales, means = self.h_s(z_hat[None])[0].chunk(2)
        return means.contiguous().numpy(), scales.contiguous().numpy()

    @staticmethod
    def channels(shape: tuple) -> np.ndarray:
        """The table of each z is that of its channel: int32 of `shape` (N, h, w)."""
        return np.broadcast_to(np.arange(shape[0], dtype=np.int32)[:, None, None], shape)


def checksum(z_symbols: np.ndarray, y_symbols: np.ndarray) -> int:
    return zlib.crc32(y_symbols.tobytes(), zlib.crc32(z_symbols.tobytes()))
