"""From latents to bytes and back.

    y, z --round--> z symbols --rANS, a table a channel--> bytes of z
                       |
                      h_s in float64 --> scales: which table;  means: what y is rounded about
                                             |
                                         y symbols --rANS, a table a scale--> bytes of y

Both sides evaluate the hyper synthesis in float64 on the CPU, so that a table is picked alike by machines whose
float32 differs in the last bits; a checksum over all symbols catches what remains.
"""
import copy
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lora_comp import rans
from lora_comp.entropy.tables import BETWEEN, bottleneck_tables, gaussian_tables
from lora_comp.errors import BitstreamError

if TYPE_CHECKING:
    from lora_comp.codecs import Codec


@dataclass(frozen=True)
class CodedLatents:
    z: bytes
    y: bytes
    symbols_crc: int


class LatentCoder:
    """Codes y and z of one picture with a codec's probability models.

    Args:
        codec: has h_s, entropy_bottleneck, medians, N and M as `codecs.tic.TIC`.
    """

    def __init__(self, codec: "Codec"):
        self.h_s = copy.deepcopy(codec.h_s).double().cpu()
        self.medians = codec.medians.double().cpu()[:, None, None]  # (N, 1, 1)
        self.z_tables = bottleneck_tables(codec.entropy_bottleneck)
        self.N = codec.N

    def compress(self, y: Tensor, z: Tensor) -> CodedLatents:
        """y float32 (1, M, h, w) and z float32 (1, N, ceil(h / 4), ceil(w / 4)) of one picture."""
        z_symbols = (z[0].detach().double().cpu() - self.medians).round().numpy().astype(np.int32)
        indexes, means = self.predict(z_symbols)
        y_symbols = (y[0].detach().double().cpu() - means).round().numpy().astype(np.int32)
        return CodedLatents(
            rans.encode(z_symbols, self.channels(z_symbols.shape), *self.z_tables),
            rans.encode(y_symbols, indexes, *gaussian_tables()),
            checksum(z_symbols, y_symbols))

    def decompress(self, coded: CodedLatents, height: int, width: int) -> Tensor:
        """y_hat float32 (1, M, 4 height, 4 width) where z is `height` by `width`.

        Raises:
            BitstreamError: the bytes are damaged, or this machine's tables differ from the encoder's.
        """
        z_symbols = rans.decode(coded.z, self.channels((self.N, height, width)), *self.z_tables)
        indexes, means = self.predict(z_symbols)
        y_symbols = rans.decode(coded.y, indexes, *gaussian_tables())
        if checksum(z_symbols, y_symbols) != coded.symbols_crc:
            raise BitstreamError("the decoded latents differ from the encoded ones: the file is damaged")
        return (torch.from_numpy(y_symbols).double() + means).float()[None]

    @torch.no_grad()
    def predict(self, z_symbols: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """int32 (N, h, w) to the table of each y, int32 (M, 4h, 4w), and its mean, float64 of that shape."""
        z_hat = torch.from_numpy(z_symbols).double() + self.medians
        scales, means = self.h_s(z_hat[None])[0].chunk(2)
        return np.searchsorted(BETWEEN, scales.numpy()).astype(np.int32), means

    @staticmethod
    def channels(shape: tuple) -> np.ndarray:
        """The table of each z is that of its channel: int32 of `shape` (N, h, w)."""
        return np.broadcast_to(np.arange(shape[0], dtype=np.int32)[:, None, None], shape)


def checksum(z_symbols: np.ndarray, y_symbols: np.ndarray) -> int:
    return zlib.crc32(y_symbols.tobytes(), zlib.crc32(z_symbols.tobytes()))
