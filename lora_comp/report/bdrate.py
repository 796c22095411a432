"""Bjontegaard delta rate: the mean difference of two rate-quality curves in percent of the rate."""

import math
from collections.abc import Iterable

import numpy as np
from scipy.interpolate import PchipInterpolator

Point = tuple[float, float]  # (rate in bpp, quality where higher is better)


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points of a curve that no other point dominates, sorted: rate and quality both rise strictly.

    A point is dominated if another one has at least its quality at no higher rate.
    """
    best: list[Point] = []
    for rate, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or quality > best[-1][1]:
            best.append((rate, quality))
    return best


def bd_rate(anchor: Iterable[Point], test: Iterable[Point]) -> float:
    """Bjontegaard delta rate of `test` against `anchor` in percent; below 0, `test` needs fewer bits.

    anchor, test: (bpp, quality) per rate point, in any order, bpp > 0; quality is PSNR in dB, accuracy, mAP or any
    other metric where higher is better.

    The mean difference of log rate over the quality interval that both curves cover (Bjontegaard, VCEG-M33, 2001),
    with piecewise cubic interpolation (PCHIP) in place of the polynomial, as in current standardisation. The scores of
    task networks may fall as the rate rises, so each curve is first reduced to its Pareto front. Four points per curve
    are customary; with fewer the result is only indicative.

    Returns nan if the curves share no quality interval, if one has fewer than two points on its Pareto front, or if a
    quality is not finite. Raises ValueError for a rate that is not a positive number.
    """
    curves = [list(anchor), list(test)]
    for rate, _ in curves[0] + curves[1]:
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"a rate must be a positive number of bits per pixel, not {rate}")
    if not all(math.isfinite(quality) for curve in curves for _, quality in curve):
        return math.nan
    curves = [pareto_front(curve) for curve in curves]
    if min(map(len, curves)) < 2:
        return math.nan
    low = max(curve[0][1] for curve in curves)
    high = min(curve[-1][1] for curve in curves)
    if low >= high:
        return math.nan
    anchor_area, test_area = (_log_rate(curve).integrate(low, high) for curve in curves)
    return float(100 * np.expm1((test_area - anchor_area) / (high - low)))


def _log_rate(curve: list[Point]) -> PchipInterpolator:
    """Log rate as a function of quality."""
    rates, qualities = np.array(curve, dtype=np.float64).T
    return PchipInterpolator(qualities, np.log(rates))
