"""The twelve kinds of object in `scenes`: polygons around the origin, and their coverage of pixels."""

import numpy as np

KINDS = (
    "disc",
    "ring",
    "square",
    "triangle",
    "star",
    "cross",
    "crescent",
    "heart",
    "arrow",
    "hexagon",
    "gear",
    "spiral",
)


def _arc(radius: float, start: float, end: float, count: int, centre: float = 0.0) -> np.ndarray:
    """(count, 2) points on a circle around (centre, 0), between two angles in radians."""
    angle = np.linspace(start, end, count)
    return np.stack([centre + radius * np.cos(angle), radius * np.sin(angle)], axis=1)  # (count, 2)


def _spokes(radii: list[float], turns: int) -> np.ndarray:
    """A closed outline whose radius repeats `radii` `turns` times."""
    r = np.tile(radii, turns)
    angle = np.arange(len(r)) * (2 * np.pi / len(r))
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2], axis=1) / 17


def _spiral() -> np.ndarray:
    t = np.linspace(0, 1, 48)
    angle, radius = 2 * np.pi * 1.75 * t, 0.12 + 0.74 * t
    outer = np.stack([(radius + 0.13) * np.cos(angle), (radius + 0.13) * np.sin(angle)], axis=1)
    inner = np.stack([(radius - 0.11) * np.cos(angle), (radius - 0.11) * np.sin(angle)], axis=1)
    return np.concatenate([outer, inner[::-1]])


def _outlines() -> dict[str, list[np.ndarray]]:
    full = 2 * np.pi
    tip = np.arccos(0.375)  # where the crescent's two circles meet
    inner_tip = np.arctan2(np.sin(tip), np.cos(tip) - 0.5)
    cross = np.array(
        [
            [a, b]
            for a, b in [
                (1, 0.3),
                (0.3, 0.3),
                (0.3, 1),
                (-0.3, 1),
                (-0.3, 0.3),
                (-1, 0.3),
                (-1, -0.3),
                (-0.3, -0.3),
                (-0.3, -1),
                (0.3, -1),
                (0.3, -0.3),
                (1, -0.3),
            ]
        ]
    )
    arrow = np.array([[1, 0], [0.15, 0.8], [0.15, 0.3], [-1, 0.3], [-1, -0.3], [0.15, -0.3], [0.15, -0.8]])
    return {
        "disc": [_arc(0.9, 0, full, 48)],
        "ring": [_arc(0.95, 0, full, 48), _arc(0.55, full, 0, 32)],
        "square": [_spokes([1.1], 4)],
        "triangle": [_spokes([1.1], 3)],
        "star": [_spokes([1.1, 0.45], 5)],
        "cross": [cross],
        "crescent": [
            np.concatenate(
                [
                    _arc(1, tip, full - tip, 40),
                    _arc(np.hypot(np.sin(tip), np.cos(tip) - 0.5), full - inner_tip, inner_tip, 40, centre=0.5),
                ]
            )
        ],
        "heart": [_heart()],
        "arrow": [arrow],
        "hexagon": [_spokes([1.0], 6)],
        "gear": [_spokes([1.02, 1.02, 0.8, 0.8], 11), _arc(0.3, full, 0, 24)],
        "spiral": [_spiral()],
    }


OUTLINES = _outlines()


def coverage(outlines: list[np.ndarray], height: int, width: int, rows: int = 4) -> np.ndarray:
    """The share of each pixel inside closed outlines: float32 (height, width) in [0, 1].

    outlines: (n, 2) arrays of x, y in pixels; an outline of opposite orientation cuts a hole. Coverage is exact along x
    and sampled at `rows` lines per pixel along y. Each crossing of a line with an edge adds its sign to everything on
    its right; the cumulative sums of signs along x are winding numbers.
    """
    start = np.concatenate(outlines)
    end = np.concatenate([np.roll(outline, -1, axis=0) for outline in outlines])
    y = ((np.arange(height * rows) + 0.5) / rows)[:, None]
    crosses = (start[:, 1] <= y) != (end[:, 1] <= y)  # (height * rows, edges)
    line, edge = np.nonzero(crosses)
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    x = np.clip(x0 + (y[line, 0] - y0) * (x1 - x0) / (y1 - y0), 0, width)
    sign = np.where(y1 > y0, -1.0, 1.0) / rows
    column = np.floor(x).astype(np.int64)
    right = x - column
    cell = (line // rows) * (width + 2) + column
    change = np.bincount(
        np.concatenate([cell, cell + 1]),
        np.concatenate([sign * (1 - right), sign * right]),
        minlength=height * (width + 2),
    ).reshape(height, width + 2)
    return np.clip(np.abs(np.cumsum(change, axis=1)[:, :width]), 0, 1).astype(np.float32)
