"""The mean-scale hyperprior as a coder (Minnen et al., "Joint Autoregressive and Hierarchical Priors for Learned Image
Compression", NeurIPS 2018, without the autoregressive part).

    y, z --round--> z symbols --rANS, a table per channel--> section 0
                       |
                      h_s in float64 --> scales: which table;  means: what y is rounded about
                                             |
                                         y symbols --rANS, a table per scale--> section 1
                                             `-> hints: see `entropy.coder`
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lora_comp import _C, rans
from lora_comp.entropy.coder import HINT, MARGIN, CodedLatents, checksum
from lora_comp.entropy.models import EntropyBottleneck
from lora_comp.entropy.tables import BETWEEN, bottleneck_tables, gaussian_tables
from lora_comp.errors import BitstreamError


class Hyperprior(Protocol):
    """What a codec needs for this coder."""

    N: int
    M: int
    stride: int
    latent_stride: int

    @property
    def h_s(self) -> nn.Module: ...

    @property
    def entropy_bottleneck(self) -> EntropyBottleneck: ...

    @property
    def medians(self) -> Tensor: ...


class MeanScale:
    """Codes y (1, M, h, w) and z (1, N, ceil(h / 4), ceil(w / 4)) with a codec's probability models.

    It holds float64 copies, so later changes of the codec's weights do not reach it.
    """

    def __init__(self, codec: Hyperprior):
        self.h_s = copy.deepcopy(codec.h_s).double().cpu()
        self.medians = codec.medians.double().cpu()[:, None, None]  # (N, 1, 1)
        self.z_tables = bottleneck_tables(codec.entropy_bottleneck)
        self.tables: Sequence[np.ndarray] = (*self.z_tables, *gaussian_tables())
        self.N, self.M, self.stride = codec.N, codec.M, codec.stride
        self.positions = (codec.stride // codec.latent_stride) ** 2  # of y for each of z

    def compress(self, latents: Mapping[str, Tensor]) -> CodedLatents:
        """See `LatentCoder.compress`."""
        y, z = latents["y"], latents["z"]
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
        return CodedLatents([coded_z, coded], checksum(z_symbols, y_symbols), np.array(hints, HINT).tobytes())

    def decompress(self, coded: CodedLatents, size: tuple[int, int]) -> Tensor:
        """See `LatentCoder.decompress`."""
        shape = self.N, *(math.ceil(side / self.stride) for side in size)
        if len(coded.sections) != 2:
            raise BitstreamError(f"the file has {len(coded.sections)} sections of latents, its codec takes z and y")
        if len(coded.hints) % HINT.itemsize:
            raise BitstreamError("the hints of the file end early: the file is damaged")
        if len(coded.hints) > HINT.itemsize * self.positions * self.M * shape[1] * shape[2]:
            raise BitstreamError("the file has more hints than latents: the file is damaged")
        hints = np.frombuffer(coded.hints, HINT).tolist()
        z_symbols = rans.decode(coded.sections[0], self.channels(shape), *self.z_tables)
        means, scales = self.predict(z_symbols)
        y_symbols, y_hat = np.empty(means.shape, np.int32), np.empty(means.shape, np.float32)
        _C.decode_latents(
            coded.sections[1],
            means,
            scales,
            BETWEEN,
            *gaussian_tables(),
            hints,
            y_symbols,
            y_hat,
            torch.get_num_threads(),
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
    def channels(shape: tuple[int, ...]) -> np.ndarray:
        """The table of each z is that of its channel: int32 of `shape` (N, h, w)."""
        return np.broadcast_to(np.arange(shape[0], dtype=np.int32)[:, None, None], shape)
