"""Likelihoods of y and z, and the quantisation operators of training."""

import math
import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

with warnings.catch_warnings():  # importing compressai scripts a function, which torch deprecates
    warnings.simplefilter("ignore", FutureWarning)
    from compressai.entropy_models import EntropyBottleneck
    from compressai.layers import GDN

__all__ = [
    "GDN",
    "EntropyBottleneck",
    "Rounding",
    "add_noise",
    "bottleneck_likelihood",
    "gaussian_likelihood",
    "round_ste",
]

Rounding: TypeAlias = Callable[[Tensor], Tensor]
SCALE_MIN = 0.11  # lower bound of y's standard deviations, as in CompressAI
LIKELIHOOD_MIN = 1e-9


def round_ste(x: Tensor) -> Tensor:
    """Straight-through rounding: round(x) forward, identity backward."""
    return x + (x.round() - x).detach()


def add_noise(x: Tensor) -> Tensor:
    """x plus uniform noise in [-1/2, 1/2), the training proxy of rounding (Balle et al., ICLR 2017)."""
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


class _LowerBound(torch.autograd.Function):
    """max(x, bound); below the bound, gradients that raise x still pass."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """CompressAI's LowerBound: max(x, bound), whose gradient also passes below the bound if descent raises x."""
    return _LowerBound.apply(x, bound)


def gaussian_likelihood(y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
    """Mass of N(means, scales) on [y - 1/2, y + 1/2]: Minnen et al., NeurIPS 2018, eq. 2. All of one shape."""
    deviation = (y - means).abs()
    root = math.sqrt(0.5) / lower_bound(scales, SCALE_MIN)
    upper = torch.special.erfc((deviation - 0.5) * root)
    lower = torch.special.erfc((deviation + 0.5) * root)
    return lower_bound(0.5 * (upper - lower), LIKELIHOOD_MIN)


def bottleneck_likelihood(model: EntropyBottleneck, z: Tensor) -> Tensor:
    """Mass of the factorised prior on [z - 1/2, z + 1/2]: z (B, N, h, w), same shape out (Balle et al., ICLR 2018)."""
    channels_first = z.transpose(0, 1)
    likelihood, _, _ = model._likelihood(channels_first.reshape(z.shape[1], 1, -1))
    return lower_bound(likelihood, LIKELIHOOD_MIN).view(channels_first.shape).transpose(0, 1)
