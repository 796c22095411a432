"""TIC at any rate: gain vectors for six rate points, interpolated between, and a context of two steps.

Cui et al., "Asymmetric Gained Deep Image Compression with Continuous Rate Adaptation", CVPR 2021; the context is
`entropy.two_step`.

    x --g_a--> * gain(q) --> y --h_a--> z          y_hat --> * inverse gain(q) --g_s--> x_hat
"""

import math

import torch
from torch import Tensor, nn

from lora_comp.codecs.codec import replace_parts
from lora_comp.codecs.tic import TIC
from lora_comp.entropy.two_step import TwoStep

LAMBDAS = (0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483)  # quality 1 to 6; CompressAI's for MSE in 8-bit units
GAIN = 0.45  # the gain begins as the square root of lambda to a power of 0.9


class TICV(TIC):
    """A `TIC` of one set of weights for all rates. See `TIC` for N, M, depths, heads, hyper_heads.

    quality: from 1 to 6, whole numbers at `LAMBDAS`, or a tensor (B,) with one for each image of a batch; see `at`.
    log_gain, log_inverse: logarithms of the gain vectors of whole qualities, (6, M).
    """

    quality: float | Tensor  # type: ignore[assignment]  # a tensor in training only
    gains = ("log_gain", "log_inverse")

    def __init__(self, N: int = 64, M: int = 256, depths=(0, 2, 4, 2), heads=(4, 4, 4, 16), hyper_heads: int = 4):
        super().__init__(N, M, depths, heads, hyper_heads, prior=TwoStep(M))
        self.quality = 4.0
        log_gain = torch.tensor([GAIN * math.log(lmbda / LAMBDAS[3]) for lmbda in LAMBDAS])
        self.log_gain = nn.Parameter(log_gain[:, None].repeat(1, M))
        self.log_inverse = nn.Parameter(-log_gain[:, None].repeat(1, M))

    def at(self, quality: float | Tensor) -> "TICV":
        """This codec at another quality, 1 to 6, or for a batch at one for each image (B,). All weights are shared."""
        made = replace_parts(self)
        made.quality = quality
        return made

    def analyze(self, x: Tensor) -> Tensor:
        return self.scaled(self.unscaled(x))

    def unscaled(self, x: Tensor) -> Tensor:
        """y before its gain, which is the same at every quality: see `TIC.analyze`."""
        return super().analyze(x)

    def scaled(self, y: Tensor) -> Tensor:
        """y from `unscaled`, at this quality."""
        return y * self.gain(self.log_gain)

    def synthesize(self, y_hat: Tensor) -> Tensor:
        return super().synthesize(y_hat * self.gain(self.log_inverse))

    def gain(self, logarithms: Tensor) -> Tensor:
        """exp of `logarithms` (6, M), interpolated linearly at the quality: (1 or B, M, 1, 1)."""
        parts = between(self.quality, logarithms.device)[:, :, None]  # not a matrix product: autocast would round it
        return (parts * logarithms).sum(1).exp()[:, :, None, None]


def between(quality: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Weights of whole qualities in a linear interpolation at `quality`, a number or (B,): float32 (1 or B, 6)."""
    at = quality if isinstance(quality, Tensor) else torch.full((1,), float(quality), device=device)
    whole = torch.arange(1, len(LAMBDAS) + 1, device=device)
    return (1 - (at.to(device)[:, None] - whole).abs()).clamp_min(0)
