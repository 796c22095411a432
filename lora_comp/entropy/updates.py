"""Coding of quantised parameter updates: what an adapted decoder costs beside the latents.

An update d of a parameter is transmitted as an integer k = d / step, with a step of 2^-exponent for the whole file. If
all k are 0 the payload is empty. Up to FEW values (the singular values of SVD-LoRA) are coded by `encode_adaptively`,
more (U and V of plain LoRA) by `encode_statically`.

Few: context-adaptive binary arithmetic coding. The exponent takes five equiprobable bins. Each k is binarised into a
zero flag, a sign, and its magnitude in unary steps of 2^shift with an Exp-Golomb escape. The probabilities of the bins
follow from the magnitudes before them (`Context`), so each layer adapts to its own scale, and a run of layers without
updates costs next to nothing. The arithmetic coder is a range coder of 32 bits (Martin, 1979) that ends in the fewest
bytes that identify its interval; zeros follow. Decoding uses integers only. A payload other than the one that its
values are coded to is refused.

Many: a byte for the exponent; a byte for the prior, an index into `tables.DECAYS`, of p(k) = (1 - rho) / (1 + rho)
rho^|k|; the rANS bytes of all k.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lora_comp import rans
from lora_comp.entropy.tables import DECAYS, laplace_tables
from lora_comp.errors import BitstreamError

EXPONENTS = range(0, 25)  # of the step: 1 down to 2^-24
FEW = 2048  # values: coding one takes some 10 microseconds
ONE = 1 << 16
UNARY = 15  # bins at most; then the Exp-Golomb code of the rest
LOOK_AHEAD = 6  # values whose rate counts when one before them is chosen
DAMAGED = "the adapter's part of the file is damaged"

Bin = tuple[int, int, int]  # its value, the frequency of 1, the total


@dataclass
class Context:
    """Running means of the magnitudes coded so far, in units of 1 / ONE.

    fast and slow have rates 1/4 and 1/16: their sum sets the probability that the next k is not 0. `excess`, of |k| - 1
    over those that are not 0, has rate 1/8 and sets the probability of larger magnitudes.
    """

    fast: int = ONE // 10
    slow: int = ONE // 10
    excess: int = ONE * 3 // 5

    def copy(self) -> "Context":
        return Context(self.fast, self.slow, self.excess)

    def add(self, magnitude: int) -> None:
        value = magnitude * ONE
        self.fast += (value - self.fast) // 4
        self.slow += (value - self.slow) // 16
        if magnitude:
            self.excess += (value - ONE - self.excess) // 8

    def changed(self) -> tuple[int, int]:
        """Frequency and total of "the next k is not 0", between 1/64 and 31/32."""
        rest = ONE * 4 // 5
        share = min(max(self.fast + self.slow, rest // 63), 31 * rest)
        return share, share + rest

    def more(self) -> tuple[int, int, int]:
        """A magnitude beyond 1 is a number of steps of 2^shift, then shift bits: frequency and total of "one more
        step", and shift."""
        shift = max((self.excess // ONE).bit_length() - 2, 0)
        share = max(self.excess >> shift, ONE // 10)
        return share, share + ONE, shift


def binarize(k: int, context: Context) -> Iterator[Bin]:
    """The bins of k; `context` is not updated."""
    changed, total = context.changed()
    yield int(k != 0), changed, total
    if not k:
        return
    yield int(k < 0), 1, 2
    further, total, shift = context.more()
    steps, low = divmod(abs(k) - 1, 1 << shift)
    for _ in range(min(steps, UNARY)):
        yield 1, further, total
    if steps < UNARY:
        yield 0, further, total
    else:
        rest = steps - UNARY + 1
        length = rest.bit_length() - 1
        yield from bits_of(length, 5)
        yield from bits_of(rest - (1 << length), length)
    yield from bits_of(low, shift)


def bits_of(value: int, count: int) -> Iterator[Bin]:
    return ((value >> i & 1, 1, 2) for i in reversed(range(count)))


def cost(k: int, context: Context) -> float:
    """Bits of k: the sum of -log2 of the probabilities of its bins."""
    return sum(math.log2(total / (share if bit else total - share)) for bit, share, total in binarize(k, context))


def bits(k: Tensor) -> Tensor:
    """Code length of integers k (..., n): (...), differentiable in k. The slope is that between a value one larger and
    one smaller (beyond 3, farther), and 0 at 0. Of few values it is the cost of their bins, vectorised; `Context`
    rounds down to whole units and this does not."""
    magnitude = k.detach().abs().round().double()
    total = (_bits_of_few if k.shape[-1] <= FEW else _bits_of_many)(k, magnitude)
    return torch.where(magnitude.any(-1), total, 0 * total)


def _bits_of_many(k: Tensor, magnitude: Tensor) -> Tensor:
    mean = magnitude.mean(-1).clamp_min(DECAYS[0])
    rho = ((1 + mean * mean).sqrt() - 1) / mean  # `tables.geometric_ratio`
    return k.shape[-1] * ((1 + rho) / (1 - rho)).log2().to(k) - k.abs().sum(-1) * rho.log2().to(k)


def _bits_of_few(k: Tensor, magnitude: Tensor) -> Tensor:
    likely, excess = _scales(magnitude)
    reach = torch.maximum(2.0 ** _shift(excess), (magnitude / 2).floor())  # rates rise in stairs as wide as that
    less = (magnitude - reach).clamp_min(0)
    here, above, below = _costs(torch.stack([magnitude, magnitude + reach, less]), likely, excess)
    slope = k.detach().sign() * ((above - below) / (magnitude + reach - less)).to(k)
    return 5 + here.sum(-1).to(k) + (slope * (k - k.detach())).sum(-1)


def _scales(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """`Context` before each value, in units of 1, of magnitudes (..., n): fast + slow, and excess."""
    changed = magnitude > 0
    start = Context()
    forget = torch.stack(
        [
            torch.full_like(magnitude, 3 / 4),
            torch.full_like(magnitude, 15 / 16),
            torch.where(changed, 7 / 8, 1.0).double(),
        ]
    )
    add = torch.stack([magnitude / 4, magnitude / 16, torch.where(changed, magnitude - 1, 0) / 8])
    first = torch.stack(
        [torch.full_like(magnitude[..., :1], value / ONE) for value in (start.fast, start.slow, start.excess)]
    )
    add = torch.cat([first, add[..., :-1]], -1)  # s[i] = forget[i - 1] s[i - 1] + add[i], and now by doubling:
    forget = torch.cat([torch.zeros_like(first), forget[..., :-1]], -1)
    reach = 1
    while reach < magnitude.shape[-1]:
        add = torch.cat([add[..., :reach], add[..., reach:] + forget[..., reach:] * add[..., :-reach]], -1)
        forget = torch.cat([forget[..., :reach], forget[..., reach:] * forget[..., :-reach]], -1)
        reach *= 2
    fast, slow, excess = add
    return fast + slow, excess


def _shift(excess: Tensor) -> Tensor:
    return (excess.frexp().exponent - 2).clamp_min(0)


def _costs(magnitude: Tensor, likely: Tensor, excess: Tensor) -> Tensor:
    """`cost` of each magnitude, an integer, in these contexts."""
    share = likely.clamp(4 / 5 / 63, 4 / 5 * 31)
    shift = _shift(excess)
    further = (excess * 2.0**-shift).clamp_min(1 / 10)
    steps = ((magnitude - 1) * 2.0**-shift).floor()
    length = (steps - (UNARY - 1)).clamp_min(1).frexp().exponent - 1
    end = torch.where(steps < UNARY, (1 + further).log2(), 5.0 + length)
    more = steps.clamp_max(UNARY) * ((1 + further) / further).log2() + end + shift
    none, some = ((share + 4 / 5) / (4 / 5)).log2(), ((share + 4 / 5) / share).log2()
    return torch.where(magnitude > 0, some + 1 + more, none)


def cheapest(choices: list[dict[int, float]], before: list[int]) -> list[int]:
    """Few integers of low rate and distortion, chosen greedily in the order of the file.

    Args:
        choices: for each value, the k that it may take and the distortion of each in bits.
        before: integers that stand for the later ones while one is chosen.
    """
    context, chosen = Context(), []
    for i, choice in enumerate(choices):
        costs = {}
        for k, distortion in choice.items():
            then = context.copy()
            costs[k] = distortion
            for value in (k, *before[i + 1 : i + 1 + LOOK_AHEAD]):
                costs[k] += cost(value, then)
                then.add(abs(value))
        chosen.append(min(costs, key=costs.__getitem__))
        context.add(abs(chosen[-1]))
    return chosen


def encode(k: np.ndarray, exponent: int) -> bytes:
    """int32 (n,) in steps of 2^-exponent to a payload."""
    if not k.any():
        return b""
    return (encode_adaptively if len(k) <= FEW else encode_statically)(k, exponent)


def decode(payload: bytes, count: int) -> tuple[np.ndarray, float]:
    """A payload of `count` values to int32 (count,) and the step.

    Raises:
        BitstreamError: the payload is damaged.
    """
    if not payload:
        return np.zeros(count, np.int32), 1.0
    return (decode_adaptively if count <= FEW else decode_statically)(payload, count)


def encode_adaptively(k: np.ndarray, exponent: int) -> bytes:
    low, extent, place = 0, 1 << 32, 0  # the interval, in units of 2^-place
    context, bins = Context(), list(bits_of(exponent, 5))
    for value in k.tolist():
        bins += binarize(value, context)
        context.add(abs(value))
    for bit, share, total in bins:
        zeros = extent * (total - share) // total
        low, extent = (low + zeros, extent - zeros) if bit else (low, zeros)
        while extent < 1 << 24:
            low, extent, place = low << 8, extent << 8, place + 8
    free = next(n for n in range(place + 32, -1, -8) if -(-low >> n) << n < low + extent)
    number = -(-low >> free)  # the one with fewest bytes
    return number.to_bytes((place + 32 - free) // 8, "big")


class BinDecoder:
    """Decodes bins from bytes, in the order in which they were coded. After the last byte follow zeros."""

    def __init__(self, data: bytes):
        self.rest = iter(data)
        self.above, self.extent = 0, 1 << 32  # how far the number is above the interval's lower end
        for _ in range(4):
            self.above = self.above << 8 | next(self.rest, 0)

    def take(self, share: int, total: int) -> int:
        zeros = self.extent * (total - share) // total
        bit = int(self.above >= zeros)
        self.above, self.extent = (self.above - zeros, self.extent - zeros) if bit else (self.above, zeros)
        while self.extent < 1 << 24:
            self.above, self.extent = self.above << 8 | next(self.rest, 0), self.extent << 8
        return bit

    def bits(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = 2 * value + self.take(1, 2)
        return value

    def change(self, context: Context) -> int:
        """The k that `binarize` gave."""
        if not self.take(*context.changed()):
            return 0
        negative = self.take(1, 2)
        share, total, shift = context.more()
        steps = 0
        while steps < UNARY and self.take(share, total):
            steps += 1
        if steps == UNARY:
            length = self.bits(5)
            steps += (1 << length) + self.bits(length) - 1
        magnitude = (steps << shift) + self.bits(shift) + 1
        return -magnitude if negative else magnitude


def decode_adaptively(payload: bytes, count: int) -> tuple[np.ndarray, float]:
    reader, context, k = BinDecoder(payload), Context(), []
    exponent = reader.bits(5)
    for _ in range(count):
        k.append(reader.change(context))
        if not -1 << 31 <= k[-1] < 1 << 31:
            raise BitstreamError(DAMAGED)
        context.add(abs(k[-1]))
    changes = np.array(k, np.int32)
    if exponent not in EXPONENTS or encode(changes, exponent) != payload:
        raise BitstreamError(DAMAGED)
    return changes, 2.0**-exponent


def encode_statically(k: np.ndarray, exponent: int) -> bytes:
    fitted = min(int(np.searchsorted(DECAYS, np.abs(k).mean())), len(DECAYS) - 1)
    priors = range(max(fitted - 3, 0), min(fitted + 4, len(DECAYS)))  # those within a factor of two
    coded = [(rans.encode(k, np.full(k.shape, p, np.int32), *laplace_tables()), p) for p in priors]
    data, best = min(coded, key=lambda pair: len(pair[0]))
    return bytes([exponent, best]) + data


def decode_statically(payload: bytes, count: int) -> tuple[np.ndarray, float]:
    if len(payload) < 2 or payload[0] not in EXPONENTS or payload[1] >= len(DECAYS):
        raise BitstreamError(DAMAGED)
    k = rans.decode(payload[2:], np.full(count, payload[1], np.int32), *laplace_tables())
    return k, 2.0 ** -payload[0]
