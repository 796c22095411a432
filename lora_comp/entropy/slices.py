"""A context of channel slices: each is predicted from the hyperprior and from the slices before it, and refined.

Minnen and Singh, "Channel-wise Autoregressive Entropy Models for Learned Image Compression", ICIP 2020, with the
networks of Zou et al., "The Devil Is in the Details: Window-based Attention for Image Compression", CVPR 2022. Of slice
i, in channels i M / slices to (i + 1) M / slices - 1:

    scales_i = f_i(hyper scales, y_hat of the slices seen)      means_i = g_i(hyper means, y_hat of the slices seen)
    y_hat_i = round(y_i - means_i) + means_i + r_i,   r_i = tanh(l_i(input of g_i, round(y_i - means_i) + means_i)) / 2

The slices seen are those before i, at most the first `seen`. r_i is the latent residual prediction.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_comp.entropy.prior import Prior


def network(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """3x3 convolutions with GELU between."""
    widths = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Slices(Prior):
    """The hyper synthesis is what scales are predicted from, (B, M, h, w), and after it the same for means.

    Args:
        M: channels of y, a multiple of `slices`.
        seen: how many slices, the first ones, later slices are predicted from.
        hidden: channels of the networks' inner layers.
    """

    grid = 2.0**-12  # means are off by 1.2e-4 at most, which costs no bits

    def __init__(self, M: int, slices: int = 12, seen: int = 6, hidden: Sequence[int] = (224, 176, 128, 64)):
        super().__init__()
        if M % slices:
            raise ValueError(f"the channels of y must be a multiple of {slices}, the slices, not {M}")
        self.steps, self.size, self.seen = slices, M // slices, seen
        inputs = [M + min(i, seen) * self.size for i in range(slices)]
        self.scales = nn.ModuleList(network(n, hidden, self.size) for n in inputs)
        self.means = nn.ModuleList(network(n, hidden, self.size) for n in inputs)
        self.residuals = nn.ModuleList(network(n + self.size, hidden, self.size) for n in inputs)

    def part(self, step: int, y: Tensor) -> Tensor:
        """See `prior.Prior.part`."""
        own = torch.arange(y.shape[1], device=y.device) // self.size == step
        return own[:, None, None].expand(y.shape[1:])

    def predict(self, step: int, hyper: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        """See `prior.Prior.predict`."""
        scales, means = hyper.chunk(2, 1)
        seen = self.before(step, y_hat)
        return (
            self.in_place(step, self.scales[step](torch.cat([scales, seen], 1))),
            self.in_place(step, self.means[step](torch.cat([means, seen], 1))),
        )

    def refine(self, step: int, hyper: Tensor, y_hat: Tensor) -> Tensor:
        """See `prior.Prior.refine`."""
        own = y_hat[:, step * self.size : (step + 1) * self.size]
        inputs = torch.cat([hyper.chunk(2, 1)[1], self.before(step, y_hat), own], 1)
        return y_hat + self.in_place(step, 0.5 * self.residuals[step](inputs).tanh())

    def before(self, step: int, y_hat: Tensor) -> Tensor:
        """The slices that a step sees: (B, min(step, seen) M / slices, h, w)."""
        return y_hat[:, : min(step, self.seen) * self.size]

    def in_place(self, step: int, values: Tensor) -> Tensor:
        """Values of a slice, (B, M / slices, h, w), where they belong in y, and 0 elsewhere: (B, M, h, w)."""
        return F.pad(values, (0, 0, 0, 0, step * self.size, (self.steps - 1 - step) * self.size))
