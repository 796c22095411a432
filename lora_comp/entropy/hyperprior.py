"""Latent coder of a hyperprior, whose prior of y has one step or several (`entropy.prior`).

    y, z --round--> z symbols --rANS, a table per channel--> section 0
                       |
                      h_s --> hyper --prior--> scales: select tables;  means: quantisation offsets of y
                                       ^          |
                                       |       y symbols of a step --rANS, a table per scale--> section 1, 2, ...
                                     y_hat <------'  `-> hints: see `entropy.coder`

h_s and the prior are evaluated in float64. A second step takes y_hat, which differs by some 1e-15 between machines; the
scales that it predicts still differ far less than MARGIN (docs/entropy.md). In a prior of many steps this could add up:
such a prior has a grid. Its means and refined latents are rounded to multiples of `prior.grid`, with hints where a
value is nearly midway between two, so that every step has the same inputs on all machines.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lora_comp import _C, rans
from lora_comp.entropy.coder import HINT, MARGIN, MEAN, REFINED, CodedLatents, checksum
from lora_comp.entropy.grid import Sides, rounded, undecided
from lora_comp.entropy.models import EntropyBottleneck
from lora_comp.entropy.prior import Prior
from lora_comp.entropy.tables import BETWEEN, bottleneck_tables, code_length, gaussian_tables
from lora_comp.errors import BitstreamError


class Hyperprior(Protocol):
    """The attributes of a codec that this coder uses."""

    N: int
    M: int
    stride: int
    latent_stride: int

    @property
    def h_s(self) -> nn.Module: ...

    @property
    def prior(self) -> Any: ...

    @property
    def entropy_bottleneck(self) -> EntropyBottleneck: ...

    @property
    def medians(self) -> Tensor: ...


class Decoded(NamedTuple):
    """What a file holds of y, each (M, h, w), and z, (N, ceil(h / 4), ceil(w / 4)).

    y_hat, scales: float64. y_symbols, z_symbols: int32.
    """

    y_hat: np.ndarray
    y_symbols: np.ndarray
    scales: np.ndarray
    z_symbols: np.ndarray


class HyperpriorCoder:
    """Codes y (1, M, h, w) and z (1, N, ceil(h / 4), ceil(w / 4)) with float64 copies of a codec's models.

    Later changes of the codec's weights have no effect.
    """

    def __init__(self, codec: Hyperprior):
        self.h_s = copy.deepcopy(codec.h_s).double().cpu()
        self.prior: Prior = copy.deepcopy(codec.prior).double().cpu()
        self.medians = codec.medians.double().cpu()[:, None, None]  # (N, 1, 1)
        self.z_tables = bottleneck_tables(codec.entropy_bottleneck)
        self.tables: Sequence[np.ndarray] = (*self.z_tables, *gaussian_tables())
        self.N, self.M, self.stride = codec.N, codec.M, codec.stride
        self.latent_stride = codec.latent_stride
        self.positions = (codec.stride // codec.latent_stride) ** 2  # of y per position of z

    def compress(self, latents: Mapping[str, Tensor]) -> CodedLatents:
        """See `LatentCoder.compress`."""
        y = latents["y"][0].detach().float().cpu().contiguous().numpy()
        z_symbols = (latents["z"][0].detach().double().cpu() - self.medians).round().numpy().astype(np.int32)
        sections = [rans.encode(z_symbols, self.channels(z_symbols.shape), *self.z_tables)]
        hyper, y_hat, y_symbols = self.hyper(z_symbols), np.zeros(y.shape), np.empty(y.shape, np.int32)
        hints: list[tuple[int, int]] = []
        for step in range(self.prior.steps):
            part, means, scales = self.predict(step, hyper, y_hat)
            of_means = undecided(means, self.prior.grid)
            means = rounded(means, self.prior.grid, of_means)
            symbols = np.empty(means.shape, np.int32)
            data, of_scales = _C.encode_latents(
                y[part], means, scales, BETWEEN, *gaussian_tables(), MARGIN, symbols, torch.get_num_threads()
            )
            sections.append(data)
            y_hat[part], y_symbols[part] = means + symbols, symbols
            refined = self.refine(step, hyper, y_hat, part)
            of_refined = undecided(refined, self.prior.grid)
            y_hat[part] = rounded(refined, self.prior.grid, of_refined)
            found = [*of_scales, *((i, MEAN + side) for i, side in of_means)]
            found += [(i, REFINED + side) for i, side in of_refined]
            places = places_of(part, y.shape) if found else []
            hints += [(places[position], choice) for position, choice in found]
        return CodedLatents(sections, self.crc(z_symbols, y_symbols, y_hat), np.array(hints, HINT).tobytes())

    def decompress(self, coded: CodedLatents, size: tuple[int, int]) -> Tensor:
        """See `LatentCoder.decompress`."""
        return torch.from_numpy(self.decoded(coded, size).y_hat.astype(np.float32))[None]

    def bits(self, coded: CodedLatents, size: tuple[int, int]) -> Tensor:
        """The ideal code length of the latents of an image at each position of y, in bits: float32 (h, w).

        That of the tables that code y, summed over its channels, and z, divided evenly among the positions under it.
        Raises BitstreamError as `decompress`.
        """
        decoded = self.decoded(coded, size)
        y, z = decoded.y_symbols, decoded.z_symbols
        of_y = code_length(y, np.searchsorted(BETWEEN, decoded.scales), gaussian_tables()).sum(0)
        of_z = code_length(z, self.channels(z.shape), self.z_tables).sum(0) / self.positions
        side = self.stride // self.latent_stride
        return torch.from_numpy(of_y + of_z.repeat(side, 0).repeat(side, 1)).float()

    def decoded(self, coded: CodedLatents, size: tuple[int, int]) -> Decoded:
        """The symbols of an image. Raises BitstreamError as `decompress`."""
        shape = self.N, *(math.ceil(side / self.stride) for side in size)
        if len(coded.sections) != 1 + self.prior.steps:
            wanted = f"its codec has z and y in {self.prior.steps} {'step' if self.prior.steps == 1 else 'steps'}"
            raise BitstreamError(f"the file has {len(coded.sections)} sections of latents, but {wanted}")
        hints = read_hints(
            coded.hints, self.positions * self.M * shape[1] * shape[2], 1 if self.prior.grid is None else 3
        )
        z_symbols = rans.decode(coded.sections[0], self.channels(shape), *self.z_tables)
        hyper = self.hyper(z_symbols)
        y_hat = np.zeros((self.M, *hyper.shape[2:]))
        y_symbols, all_scales = np.empty(y_hat.shape, np.int32), np.empty(y_hat.shape)
        for step, data in enumerate(coded.sections[1:]):
            part, means, scales = self.predict(step, hyper, y_hat)
            places = {place: i for i, place in enumerate(places_of(part, y_hat.shape))} if hints else {}
            own = [(places[position], choice) for position, choice in hints if position in places]
            of_scales, of_means, of_refined = self.by_kind(own)
            means = rounded(means, self.prior.grid, of_means)
            symbols, values = np.empty(means.shape, np.int32), np.empty(means.shape, np.float32)
            _C.decode_latents(
                data, means, scales, BETWEEN, *gaussian_tables(), of_scales, symbols, values, torch.get_num_threads()
            )
            y_hat[part], y_symbols[part], all_scales[part] = means + symbols, symbols, scales
            y_hat[part] = rounded(self.refine(step, hyper, y_hat, part), self.prior.grid, of_refined)
        if self.crc(z_symbols, y_symbols, y_hat) != coded.symbols_crc:
            raise BitstreamError("the decoded latents differ from the encoded ones: the file is corrupt")
        return Decoded(y_hat, y_symbols, all_scales, z_symbols)

    @torch.no_grad()
    def hyper(self, z_symbols: np.ndarray) -> Tensor:
        """Symbols of z, int32 (N, h, w), to the output of the hyper synthesis, float64 (1, 2 M, 4h, 4w)."""
        return self.h_s((torch.from_numpy(z_symbols).double() + self.medians)[None])

    @torch.no_grad()
    def predict(self, step: int, hyper: Tensor, y_hat: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        """The part of y (M, h, w) that is coded in a step, as an index, and its means and scales, float64.

        y_hat: that of the steps before and 0 elsewhere, float64 (M, h, w).
        """
        given = torch.from_numpy(y_hat)[None]
        part = self.prior.part(step, given)
        scales, means = (values[0][part].contiguous().numpy() for values in self.prior.predict(step, hyper, given))
        return part.numpy() if isinstance(part, Tensor) else part, means, scales

    @torch.no_grad()
    def refine(self, step: int, hyper: Tensor, y_hat: np.ndarray, part: Any) -> np.ndarray:
        """The refined part of a step, float64, not rounded to the grid. See `Prior.refine`."""
        return self.prior.refine(step, hyper, torch.from_numpy(y_hat)[None])[0].numpy()[part]

    def crc(self, z_symbols: np.ndarray, y_symbols: np.ndarray, y_hat: np.ndarray) -> int:
        """The CRC-32 of all symbols, and of y_hat in float32 where a grid makes it equal on all machines."""
        exact = [] if self.prior.grid is None else [y_hat.astype(np.float32).view(np.int32)]
        return checksum(z_symbols, y_symbols, *exact)

    def by_kind(self, hints: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], Sides, Sides]:
        """The hints for tables of scales, for means and for refined latents."""
        if self.prior.grid is None:
            return hints, [], []
        sides = [[(i, choice - kind) for i, choice in hints if choice - kind in (0, 1)] for kind in (MEAN, REFINED)]
        return [hint for hint in hints if hint[1] not in range(MEAN, REFINED + 2)], sides[0], sides[1]

    @staticmethod
    def channels(shape: tuple[int, ...]) -> np.ndarray:
        """The table of each symbol of z, its channel: int32 of `shape` (N, h, w)."""
        return np.broadcast_to(np.arange(shape[0], dtype=np.int32)[:, None, None], shape)


def places_of(part: Any, shape: tuple[int, ...]) -> list[int]:
    """The positions in y, in C order, of the latents of a part."""
    return np.arange(math.prod(shape)).reshape(shape)[part].ravel().tolist()


def read_hints(data: bytes, latents: int, each: int) -> list[tuple[int, int]]:
    """The positions and choices of hints for so many latents with at most `each`. Raises BitstreamError for others."""
    if len(data) % HINT.itemsize:
        raise BitstreamError("the file is corrupt: its hints end early")
    if len(data) > HINT.itemsize * latents * each:
        raise BitstreamError("the file is corrupt: it has more hints than latents")
    hints = np.frombuffer(data, HINT)
    if (hints["position"] >= latents).any():
        raise BitstreamError("the file is corrupt: it has a hint for a latent that is not there")
    return hints.tolist()
