"""Likelihoods of y and z; the coders of `entropy` turn them into files."""

import math
import warnings

import torch
from torch import Tensor

with warnings.catch_warnings():  # compressai's import still scripts a function, which today's torch warns of
    warnings.simplefilter("ignore", FutureWarning)
    from compressai.entropy_models import EntropyBottleneck
    from compressai.layers import GDN

__all__ = ["GDN", "EntropyBottleneck", "add_noise", "bottleneck_likelihood", "gaussian_likelihood", "round_ste"]

SCALE_MIN = 0.11  # smallest standard deviation of y that the tables know
LIKELIHOOD_MIN = 1e-9


def round_ste(x: Tensor) -> Tensor:
    """round(x) forward, the identity backward."""
    return x + (x.round() - x).detach()


def add_noise(x: Tensor) -> Tensor:
    """x plus uniform noise in [-1/2, 1/2): what stands for rounding in training (Balle et al., ICLR 2017)."""
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


class _LowerBound(torch.autograd.Function):
    """max(x, bound), whose gradient still passes where it would raise x."""

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
    return _LowerBound.apply(x, bound)


def gaussian_likelihood(y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
    """Mass of N(means, scales) on [y - 1/2, y + 1/2]: Minnen et al., NeurIPS 2018, eq. 2. All of one shape."""
    deviation = (y - means).abs()
    root = math.sqrt(0.5) / lower_bound(scales, SCALE_MIN)
    upper = torch.special.erfc((deviation - 0.5) * root)
    lower = torch.special.erfc((deviation + 0.5) * root)
    return lower_bound(0.5 * (upper - lower), LIKELIHOOD_MIN)


def bottleneck_likelihood(model: EntropyBottleneck, z: Tensor) -> Tensor:
    """Mass of the fully factorised model on [z - 1/2, z + 1/2], channel by channel: z (B, N, h, w), same shape out."""
    channels_first = z.transpose(0, 1)
    likelihood, _, _ = model._likelihood(channels_first.reshape(z.shape[1], 1, -1))
    return lower_bound(likelihood, LIKELIHOOD_MIN).view(channels_first.shape).transpose(0, 1)
