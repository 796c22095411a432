"""A search for the transmitted integers after gradient descent, by the objective itself; only the synthesis runs."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lora_comp.entropy import updates
from lora_comp.entropy.updates import EXPONENTS, FEW
from lora_comp.methods.low_rank import Quantised
from lora_comp.objective import Adapted, Objective

ATTEMPTS = 4  # beside latents, whose steps are cheaper, one
REACH = 2  # steps that a value is moved at most, except for a move to 0


class Searched(Adapted, Protocol):
    """An adapted codec whose transmitted integers can be set, as `methods.svd_lora.AdaptedLowRank`."""

    exponent: np.ndarray

    def symbols(self) -> np.ndarray: ...

    def transmitted(self) -> list[Quantised]: ...

    def place(self, k: np.ndarray, exponent: np.ndarray) -> None: ...


def refine(adapted: Searched, objective: Objective, attempts: int = ATTEMPTS) -> None:
    """Choose what is transmitted, and the step it is rounded to, at the lowest objective found in a few attempts.

    The latents stay as they are. The slope of the distortion predicts which integers should be better, and those are
    kept if they are, of each image its own. Four attempts take as long as three or four steps of descent with the
    encoder's adapter. Where more than `updates.FEW` values are transmitted nothing is done.
    """
    if adapted.symbols().shape[1] > FEW:
        return
    with torch.no_grad():
        y_hat = adapted.codec.rate(adapted.latents(objective.x)).y_hat
    scale = objective.weight * objective.pixels  # from distortion to bits
    parameters = [q.latent for q in adapted.transmitted()]

    @torch.no_grad()
    def measure() -> np.ndarray:
        tiles = (_numpy(scale * objective.distortion(tile, adapted.codec, y_hat)) for tile in objective.tiles)
        return _numpy(adapted.bits()) + sum(tiles)

    def slopes() -> tuple[np.ndarray, np.ndarray]:
        total, value = np.zeros(adapted.symbols().shape), _numpy(adapted.bits())
        for tile in objective.tiles:
            bits = scale * objective.distortion(tile, adapted.codec, y_hat)
            value = value + _numpy(bits)
            total += _numpy(torch.cat([g.flatten(1) for g in torch.autograd.grad(bits.sum(), parameters)], 1))
        return total, value

    damping, (slope, lowest) = np.ones(len(y_hat)), slopes()
    for attempt in range(attempts):
        k, exponent, before = adapted.symbols(), adapted.exponent, lowest
        nearby = [np.clip(exponent + e, EXPONENTS[0], EXPONENTS[-1]) for e in ((-1, 0, 1) if attempt == 0 else (0,))]
        for proposal in [(propose(adapted, slope, e, damping), e) for e in nearby]:
            adapted.place(*proposal)
            found = measure()
            lower = found < lowest
            lowest = np.where(lower, found, lowest)
            k, exponent = np.where(lower[:, None], proposal[0], k), np.where(lower, proposal[1], exponent)
        adapted.place(k, exponent)
        improved = lowest < before
        damping[~improved] *= 4
        if improved.any() and attempt < attempts - 1:
            slope, _ = slopes()


def propose(adapted: Searched, slopes: np.ndarray, exponent: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """Integers int32 (B, n) in steps of 2^-exponent at which distortion and rate should be lower than they are.

    About the present values the distortion is modelled as slope * d + curvature / 2 * d^2 in each value d separately.
    The curvature is a guess: damping times slope, which lets a value move by some 1 / damping.

    Args:
        slopes: of the distortion, in bits, along each change: float (B, n).
        exponent, damping: of each image: int and float (B,).
    """
    k = adapted.symbols() * 2.0 ** (exponent - adapted.exponent)[:, None]
    slopes = slopes * 2.0 ** -exponent[:, None]
    curvature = damping[:, None] * (np.abs(slopes) + np.abs(slopes).mean(1, keepdims=True) / 4)
    return np.array([_nearby(*image) for image in zip(k, slopes, curvature, strict=True)], np.int32)


def _nearby(k: np.ndarray, slopes: np.ndarray, curvature: np.ndarray) -> list[int]:
    """The integers of one image that `propose` finds about its present ones, k: each float (n,)."""
    nearest = np.rint(k).astype(np.int32).tolist()
    choices = []
    for start, middle, slope, curve in zip(k, nearest, slopes, curvature, strict=True):
        moves = {value: value - start for value in (*range(middle - REACH, middle + REACH + 1), 0)}
        choices.append({value: slope * d + curve / 2 * d * d for value, d in moves.items()})
    return updates.cheapest(choices, nearest)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
