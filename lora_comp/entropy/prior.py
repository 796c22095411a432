"""The interface of priors: Gaussians of y given the hyper synthesis and what was decoded in earlier steps.

A prior divides y into `steps`. Each step predicts its part of y from the parts before. `mean_scale.MeanScale` has one
step, `two_step.TwoStep` two, `slices.Slices` one for each slice of channels; raster scan is a prior of more steps.
"""

from types import EllipsisType
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lora_comp.entropy.models import Rounding

Part: TypeAlias = Tensor | EllipsisType


class Prior(nn.Module):
    """The base class of priors.

    steps: how many parts y is coded in.
    grid: what the coder rounds means and refined latents to multiples of, so that every step has exact inputs; None
        for a prior of so few steps that errors of float64 cannot build up. See `entropy.hyperprior`.
    """

    steps: int
    grid: float | None = None

    def part(self, step: int, y: Tensor) -> Part:
        """Where y (B, M, h, w) is coded in a step: bool (M, h, w) on its device, or ... for all of it."""
        raise NotImplementedError

    def predict(self, step: int, hyper: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and means of y, each (B, M, h, w); only those of the step's part are used.

        Args:
            hyper: output of the hyper synthesis, (B, 2 M, h, w).
            y_hat: quantised and refined y of the steps before and 0 elsewhere, (B, M, h, w); ignored by the first step.
        """
        raise NotImplementedError

    def refine(self, step: int, hyper: Tensor, y_hat: Tensor) -> Tensor:
        """y_hat after a step, whose part is still y as it was coded, with that part nearer to y: (B, M, h, w).

        Later steps and the synthesis transform take the result. A prior needs no such prediction of y's rounding error.
        """
        return y_hat


class Quantised(NamedTuple):
    """All of them (B, M, h, w).

    y_hat: quantised and refined y, the input of the synthesis transform.
    coded: y as it is coded: an integer plus its mean.
    scales, means: of the Gaussians of `coded`.
    """

    y_hat: Tensor
    coded: Tensor
    scales: Tensor
    means: Tensor


def quantise(prior: Prior, y: Tensor, hyper: Tensor, rounding: Rounding) -> Quantised:
    """Quantise y (B, M, h, w) step by step: rounding(y - means) + means, refined."""
    y_hat = coded = scales = means = torch.zeros_like(y)
    for step in range(prior.steps):
        part = prior.part(step, y)
        new_scales, new_means = prior.predict(step, hyper, y_hat)
        new = rounding(y - new_means) + new_means
        before = y_hat, coded, scales, means
        y_hat, coded, scales, means = (
            a if isinstance(part, EllipsisType) else torch.where(part, a, b)
            for a, b in zip((new, new, new_scales, new_means), before, strict=True)
        )
        y_hat = prior.refine(step, hyper, y_hat)
    return Quantised(y_hat, coded, scales, means)
