"""Rounding to a grid that gives the same values on all machines.

Results of float64 differ by some 1e-15 between machines, so a value midway between two multiples of the grid may be
rounded either way. The encoder lists the values that are nearly midway, and the side that it took.
"""

from collections.abc import Sequence

import numpy as np

MIDWAY = 2.0**-21  # of a step of the grid: one value in a million is listed

Sides = Sequence[tuple[int, int]]  # places in C order, and whether the upper of the two multiples was taken


def undecided(values: np.ndarray, step: float | None) -> Sides:
    """The values, float64 of any shape, that are nearly midway between two multiples of `step`; none for None."""
    if step is None:
        return []
    steps = values.ravel() / step
    fractions = steps - np.floor(steps)
    return [(int(i), int(fractions[i] >= 0.5)) for i in np.flatnonzero(np.abs(fractions - 0.5) < MIDWAY)]


def rounded(values: np.ndarray, step: float | None, sides: Sides) -> np.ndarray:
    """The nearest multiples of `step`, or for the places that are listed the one on that side. For None the values."""
    if step is None:
        return values
    steps = values / step
    multiples = np.floor(steps + 0.5)
    for place, side in sides:
        multiples.flat[place] = np.floor(steps.flat[place]) + side
    return multiples * step
