"""Search for better transmitted integers after gradient descent, evaluating synthesis transform and task only."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lora_comp.entropy import updates
from lora_comp.entropy.updates import EXPONENTS, FEW
from lora_comp.methods.low_rank import Quantised
from lora_comp.objective import Adapted, Objective

ATTEMPTS = 4  # with optimised latents, whose steps are cheaper, one
REACH = 2  # maximal change of an integer, except to 0


class Searched(Adapted, Protocol):
    """An adapted codec whose transmitted integers can be set, such as `methods.svd_lora.AdaptedLowRank`."""

    exponent: np.ndarray

    def symbols(self) -> np.ndarray: ...

    def transmitted(self) -> list[Quantised]: ...

    def place(self, k: np.ndarray, exponent: np.ndarray) -> None: ...


def refine(adapted: Searched, objective: Objective, attempts: int = ATTEMPTS) -> None:
    """Search for transmitted integers, and their step, of lower objective, for each image independently.

    The latents are fixed. In each attempt, the gradient of the distortion predicts better integers, which are kept if
    they lower the objective. Four attempts take the time of three or four steps of descent with the encoder's adapter.
    Nothing is done if more than `updates.FEW` values are transmitted.
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
            values = measure()
            lower = values < lowest
            lowest = np.where(lower, values, lowest)
            k, exponent = np.where(lower[:, None], proposal[0], k), np.where(lower, proposal[1], exponent)
        adapted.place(k, exponent)
        improved = lowest < before
        damping[~improved] *= 4
        if improved.any() and attempt < attempts - 1:
            slope, _ = slopes()


def propose(adapted: Searched, slopes: np.ndarray, exponent: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """Integers int32 (B, n) in steps of 2^-exponent that are predicted to lower distortion plus rate.

    The distortion is modelled as slope * d + curvature / 2 * d^2 in the change d of each value. The curvature is
    heuristic: damping times slope, which limits d to about 1 / damping.

    Args:
        slopes: derivatives of the distortion in bits by the transmitted values: float (B, n).
        exponent, damping: int and float (B,).
    """
    k = adapted.symbols() * 2.0 ** (exponent - adapted.exponent)[:, None]
    slopes = slopes * 2.0 ** -exponent[:, None]
    curvature = damping[:, None] * (np.abs(slopes) + np.abs(slopes).mean(1, keepdims=True) / 4)
    return np.array([_nearby(*image) for image in zip(k, slopes, curvature, strict=True)], np.int32)


def _nearby(k: np.ndarray, slopes: np.ndarray, curvature: np.ndarray) -> list[int]:
    """`propose` for one image with present values k; all float (n,)."""
    nearest = np.rint(k).astype(np.int32).tolist()
    choices = []
    for start, middle, slope, curve in zip(k, nearest, slopes, curvature, strict=True):
        moves = {value: value - start for value in (*range(middle - REACH, middle + REACH + 1), 0)}
        choices.append({value: slope * d + curve / 2 * d * d for value, d in moves.items()})
    return updates.cheapest(choices, nearest)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
