"""Integer tables for the rANS coder, in CompressAI's layout.

A table is a row of cumulative frequencies from 0 to 65536; its last bin is the escape for values out of range. Tables
are computed in float64 on the CPU and are part of a codec's hash, so a machine that computes a different table rejects
the file.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import erfc

from lora_comp.entropy.models import SCALE_MIN, EntropyBottleneck

TOTAL = 1 << 16
SCALES = np.exp(np.linspace(math.log(SCALE_MIN), math.log(256), 64))  # standard deviations of y's tables
BETWEEN = np.sqrt(SCALES[1:] * SCALES[:-1])  # nearest table; the overhead is a quarter of that of the next larger one
DECAYS = 2.0 ** np.linspace(-2, 8, 32)  # mean absolute values of the tables of quantised updates, in steps
TAIL = 2.0**-17  # less likely values use the escape


class Tables(NamedTuple):
    """Arguments of `rans`: cdfs int32 (tables, longest), sizes int32 (tables,), offsets int32 (tables,)."""

    cdfs: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray


def code_length(symbols: np.ndarray, indexes: np.ndarray, tables: Tables) -> np.ndarray:
    """Ideal code length of each symbol under the table that `indexes` names, in bits: float64 of the same shape.

    For a symbol that its table does not reach: that of the escape, and the bytes of its value (`rans`).
    """
    cdfs, sizes, offsets = tables
    value, escape = symbols.astype(np.int64) - offsets[indexes], sizes[indexes] - 2
    outside = (value < 0) | (value >= escape)
    place = np.where(outside, escape, value)
    folded = np.where(value < 0, -2 * value - 1, 2 * (value - escape))
    of_value = 8 * (1 + np.floor(np.log2(np.maximum(folded, 1)) / 7))
    frequency = cdfs[indexes, place + 1] - cdfs[indexes, place]
    return math.log2(TOTAL) - np.log2(frequency) + np.where(outside, of_value, 0)


def quantise(mass: np.ndarray) -> np.ndarray:
    """Probabilities float64 (n,), the escape last, to cumulative frequencies int32 (n + 1,) without empty bins."""
    frequency = np.maximum(1, np.rint(mass / mass.sum() * TOTAL)).astype(np.int64)
    while excess := int(frequency.sum()) - TOTAL:
        largest = np.argsort(-frequency, kind="stable")[: abs(excess)]
        frequency[largest] -= np.sign(excess) * (frequency[largest] > 1)
    return np.concatenate([[0], np.cumsum(frequency)]).astype(np.int32)


def stack(rows: list[np.ndarray], offsets: list[int]) -> Tables:
    cdfs = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, cdf in zip(cdfs, rows, strict=True):
        row[: len(cdf)] = cdf
    return Tables(cdfs, np.array([len(r) for r in rows], np.int32), np.array(offsets, np.int32))


@cache
def gaussian_tables() -> Tables:
    """One table for each of `SCALES`, symmetric about 0."""
    rows, halves = [], []
    for scale in SCALES:
        value = np.arange(int(8 * scale) + 3)
        mass = 0.5 * (erfc((value - 0.5) / scale * math.sqrt(0.5)) - erfc((value + 0.5) / scale * math.sqrt(0.5)))
        rows.append(symmetric(mass))
        halves.append(-(len(rows[-1]) - 3) // 2)
    return stack(rows, halves)


@cache
def laplace_tables() -> Tables:
    """One table for each of `DECAYS`: the two-sided geometric distribution with that mean absolute value."""
    rows, halves = [], []
    for decay in DECAYS:
        ratio = geometric_ratio(decay)
        value = np.arange(int(24 * (decay + 1)))
        rows.append(symmetric((1 - ratio) / (1 + ratio) * ratio**value))
        halves.append(-(len(rows[-1]) - 3) // 2)
    return stack(rows, halves)


def geometric_ratio(decay: float) -> float:
    """rho such that p(k) = (1 - rho) / (1 + rho) rho^|k| has mean absolute value `decay` = 2 rho / (1 - rho^2)."""
    return (math.sqrt(1 + decay * decay) - 1) / decay


def symmetric(mass: np.ndarray) -> np.ndarray:
    """The table of a symmetric distribution from its masses at 0, 1, 2, ...; it has at least -1, 0 and 1."""
    half = max(2, int((mass >= TAIL).sum()))
    both = np.concatenate([mass[half - 1 : 0 : -1], mass[:half]])
    return quantise(np.append(both, max(1 - both.sum(), 0.0)))


def bottleneck_tables(model: EntropyBottleneck) -> Tables:
    """A table for each channel of z, centred at its median."""
    double = EntropyBottleneck(model.channels).double()
    double.load_state_dict(
        {
            k: v.double()
            for k, v in model.state_dict().items()
            if not k.startswith(("_offset", "_quantized_cdf", "_cdf_length"))
        },
        strict=False,
    )
    medians = double.quantiles[:, 0, 1].detach()
    reach = np.arange(-64, 65)
    samples = medians[:, None, None] + medians.new_tensor(reach)[None, None]
    mass = double._likelihood(samples)[0].detach().numpy()[:, 0]  # (N, 129)
    rows, offsets = [], []
    for row in mass:
        inside = np.flatnonzero(row >= TAIL)
        first, last = (min(inside[0], 63), max(inside[-1], 65)) if len(inside) else (63, 65)
        kept = row[first : last + 1]
        rows.append(quantise(np.append(kept, max(1 - kept.sum(), 0.0))))
        offsets.append(int(reach[first]))
    return stack(rows, offsets)
