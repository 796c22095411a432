"""Shapes of arguments, compared with a declared table before anything is computed from them.

>>> import numpy as np
>>> table = Shapes({"weight": "out in", "bias": "out", "x": "... in", "packed": "out 3in"})
>>> table.check(np.zeros((4, 5)), None, np.zeros((2, 7, 5)))["out"]
4
>>> table.check(np.zeros((4, 5)), np.zeros(5))
Traceback (most recent call last):
ValueError: bias must have shape (4,), not (5,)
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any


class Shapes:
    """A table of arguments and the names of their dimensions, separated by spaces.

    A name stands for one size in the whole table, which the first argument that has it decides. A factor before it
    multiplies that size, a number alone is the size itself, and "..." stands for any number of dimensions, everywhere
    the same ones.
    """

    def __init__(self, table: Mapping[str, str]):
        self.arguments = {name: [_dimension(word) for word in words.split()] for name, words in table.items()}

    def check(self, *arguments: Any, **known: int) -> Mapping[str, Any]:
        """The size of each name, from arguments in the table's order, which are None or have a `shape`.

        Raises:
            ValueError: an argument's shape is not that of the table, or contradicts an argument before it or `known`.
        """
        return _remembered(self, tuple([a if a is None else a.shape for a in arguments]), tuple(known.items()))

    def compare(self, *arguments: Any, **known: int) -> Mapping[str, Any]:
        """The same without a memory of what was compared before, which a compiler that traces it cannot read."""
        return _compare(self, tuple([a if a is None else a.shape for a in arguments]), tuple(known.items()))


def _compare(table: Shapes, shapes: tuple, known: tuple) -> Mapping[str, Any]:
    sizes: dict[str, Any] = {"": 1, **dict(known)}
    for (name, dimensions), shape in zip(table.arguments.items(), shapes, strict=False):
        if shape is not None and not _fits(shape, dimensions, sizes):
            raise ValueError(f"{name} must have shape {_text(dimensions, sizes)}, not {tuple(shape)}")
    return sizes


# Comparing the shapes of six arguments takes 6 microseconds, looking them up one.
_remembered = lru_cache(1024)(_compare)


def _dimension(word: str) -> tuple[int, str]:
    factor, name = re.fullmatch(r"(\d*)(.*)", word).groups()  # type: ignore[union-attr]
    return int(factor or 1), name


_REST = _dimension("...")


def _fits(shape: tuple[int, ...], dimensions: list[tuple[int, str]], sizes: dict[str, Any]) -> bool:
    """Whether a shape is that of the table; enters the sizes that it decides."""
    if _REST in dimensions:
        first, after = dimensions.index(_REST), len(shape) - len(dimensions) + 1
        rest = shape[first : first + after]
        if after < 0 or sizes.setdefault("...", rest) != rest:
            return False
        shape = shape[:first] + shape[first + after :]
        dimensions = dimensions[:first] + dimensions[first + 1 :]
    if len(shape) != len(dimensions):
        return False
    for size, (factor, name) in zip(shape, dimensions, strict=True):
        known = sizes.get(name)
        if known is None and size % factor == 0:
            sizes[name] = size // factor
        elif known is None or size != factor * known:
            return False
    return True


def _text(dimensions: list[tuple[int, str]], sizes: dict[str, Any]) -> str:
    """The shape that is wanted, with the sizes that are known."""

    def word(factor: int, name: str) -> str:
        if (factor, name) == _REST:
            return ", ".join(map(str, sizes.get(name, ("...",))))
        if name in sizes:
            return str(factor * sizes[name])
        return f"{factor} {name}" if factor > 1 else name

    words = [text for text in (word(*dimension) for dimension in dimensions) if text]
    return f"({words[0]},)" if len(words) == 1 else f"({', '.join(words)})"
