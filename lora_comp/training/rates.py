"""The rate points that the images of a training batch have, and what their objectives weigh."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, are spread evenly however many there are


@dataclass(frozen=True)
class Rates:
    """One rate point, or for a codec or an adapter of variable rate all of them, with every quality between.

    qualities: rate points by rising rate.
    weight: the factor of the distortion at a quality, where bits per pixel have a factor of 1.
    """

    qualities: tuple[float, ...]
    weight: Callable[[float], float]

    @property
    def variable(self) -> bool:
        return len(self.qualities) > 1

    def __str__(self) -> str:
        return "all rates" if self.variable else f"quality {self.qualities[0]:g}"

    def at(self, codec: Any, quality: Any) -> Any:
        """The codec at a quality, a number or (B,); a codec of one rate point as it is."""
        return codec.at(quality) if self.variable else codec

    def draw(self, step: int, count: int) -> Tensor:
        """Quality and the factors of bits per pixel and of the distortion for each image of a step: float32 (3, count).

        The range of qualities is divided into `count` equal parts with one image each. Where in its part an image lies
        moves from step to step, which a batch of one image needs too.
        """
        first, last = self.qualities[0], self.qualities[-1]
        quality = first + (last - first) * (np.arange(count) + step * GOLDEN % 1) / count
        weight = np.array([self.weight(q) for q in quality.tolist()])
        balance = self.balance(weight)
        return torch.from_numpy(np.stack([quality, balance, balance * weight])).float()

    def balance(self, weight: Any) -> Any:
        """The factor of an objective, from its weight: (weight / weight of the middle rate point)^-1/2.

        Objectives grow about with the root of the weight, and a high rate would drown the others.
        """
        return (weight / self.weight(self.qualities[len(self.qualities) // 2])) ** -0.5
