"""What an adapted decoder costs: the changes of its adapter, quantised and coded.

A change d of a parameter travels as k = round(d / step) under a two-sided geometric prior,
    p(k) = (1 - rho) / (1 + rho) rho^|k|,
whose mean absolute value is chosen for the file. Payload: a byte for the step, 2^-byte; a byte for the prior, an index
into `tables.DECAYS`; the rANS bytes of all k. No change at all is an empty payload.
"""
import math

import numpy as np
from torch import Tensor

from lora_comp import rans
from lora_comp.entropy.tables import DECAYS, geometric_ratio, laplace_tables
from lora_comp.errors import BitstreamError

EXPONENTS = range(0, 25)  # of the step: 1 down to 2^-24


def bits(k: Tensor) -> Tensor:
    """Ideal code length of whole-numbered k under the prior fitted to them: a scalar, differentiable in k."""
    decay = max(k.detach().abs().mean().item(), DECAYS[0])
    rho = geometric_ratio(decay)
    return k.numel() * math.log2((1 + rho) / (1 - rho)) - k.abs().sum() * math.log2(rho)


def encode(k: np.ndarray, exponent: int) -> bytes:
    """int32 (n,) in steps of 2^-exponent to a payload."""
    if not k.any():
        return b""
    fitted = min(int(np.searchsorted(DECAYS, np.abs(k).mean())), len(DECAYS) - 1)
    priors = range(max(fitted - 3, 0), min(fitted + 4, len(DECAYS)))  # those within a factor of two
    coded = [(rans.encode(k, np.full(k.shape, p, np.int32), *laplace_tables()), p) for p in priors]
    data, best = min(coded, key=lambda pair: len(pair[0]))
    return bytes([exponent, best]) + data


def decode(payload: bytes, count: int) -> tuple[np.ndarray, float]:
    """A payload of `count` changes to int32 (count,) and the step.

    Raises:
        BitstreamError: the payload is damaged.
    """
    if not payload:
        return np.zeros(count, np.int32), 1.0
    if len(payload) < 2 or payload[0] not in EXPONENTS or payload[1] >= len(DECAYS):
        raise BitstreamError("the adapter's part of the file is damaged")
    k = rans.decode(payload[2:], np.full(count, payload[1], np.int32), *laplace_tables())
    return k, 2.0 ** -payload[0]
