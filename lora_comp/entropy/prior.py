"""The interface of priors: Gaussians of y given the hyper synthesis and what was decoded in earlier steps.

A prior divides y into `steps`. Each step predicts its part of y from the parts before. `mean_scale.MeanScale` has one
step, `two_step.TwoStep` two; channel slices and raster scan are priors of more steps.
"""

from types import EllipsisType
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from lora_comp.entropy.models import Rounding

Part: TypeAlias = Tensor | EllipsisType


class Prior(Protocol):
    """An nn.Module.

    steps: how many parts y is coded in.
    """

    @property
    def steps(self) -> int: ...

    def part(self, step: int, y: Tensor) -> Part:
        """Where y (B, M, h, w) is coded in a step: bool (M, h, w) on its device, or ... for all of it."""

    def predict(self, step: int, hyper: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and means of y, each (B, M, h, w); only those of the step's part are used.

        Args:
            hyper: output of the hyper synthesis, (B, 2 M, h, w).
            y_hat: quantised y of the steps before and 0 elsewhere, (B, M, h, w); ignored by the first step.
        """


def quantise(prior: Prior, y: Tensor, hyper: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor, Tensor]:
    """y_hat = rounding(y - means) + means, and the scales and means of all steps: (B, M, h, w) each."""
    scales, means = prior.predict(0, hyper, y)
    y_hat = rounding(y - means) + means
    part = prior.part(0, y)
    for step in range(1, prior.steps):
        following = prior.part(step, y)
        assert isinstance(part, Tensor) and isinstance(following, Tensor)
        new_scales, new_means = prior.predict(step, hyper, y_hat * part)
        new = rounding(y - new_means) + new_means
        y_hat, scales, means = (
            torch.where(following, b, a) for a, b in ((y_hat, new), (scales, new_scales), (means, new_means))
        )
        part = part | following
    return y_hat, scales, means
