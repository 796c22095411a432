"""A context of two steps: half of y from the hyperprior, the other half from it and the first.

The channels are split in two with complementary checkerboards, so that each step covers every position of the image:
the dual spatial prior of Li et al., "Neural Video Compression with Diverse Contexts", CVPR 2023, after the
checkerboard of He et al., "Checkerboard Context Model for Efficient Learned Image Compression", CVPR 2021.

    channels 0 .. M/2 - 1     channels M/2 .. M - 1
        1 2 1 2                    2 1 2 1
        2 1 2 1                    1 2 1 2
"""

import torch
from torch import Tensor, nn

from lora_comp.entropy.prior import Prior

LOG_SCALE = 3.0  # a scale changes by at most this in its logarithm


class TwoStep(Prior):
    """scales * exp(d_scale) and means + d_mean in the second step, where a convolutional network computes d_scale and
    d_mean from the hyper synthesis and the first half of y. A new network leaves both at 0.

    Args:
        M: channels of y, even.
        context: channels that summarise the 3x3 neighbours of the first half.
        hidden: channels of the network's layers.
    """

    steps = 2

    def __init__(self, M: int, context: int = 96, hidden: int = 192):
        super().__init__()
        self.seen = nn.Conv2d(M, context, 3, padding=1)
        self.fuse = nn.Sequential(
            nn.Conv2d(2 * M + context, hidden, 1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.GELU(),
            last := nn.Conv2d(hidden, 2 * M, 1),
        )
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def part(self, step: int, y: Tensor) -> Tensor:
        """See `prior.Prior.part`."""
        channels, height, width = (torch.arange(n, device=y.device) for n in y.shape[1:])
        half = channels >= len(channels) // 2
        return (height[:, None] + width + half[:, None, None]) % 2 == step

    def predict(self, step: int, hyper: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        """See `prior.Prior.predict`."""
        scales, means = hyper.chunk(2, 1)
        if step == 0:
            return scales, means
        log_scale, mean = self.fuse(torch.cat([hyper, self.seen(y_hat)], 1)).chunk(2, 1)
        return scales * log_scale.clamp(-LOG_SCALE, LOG_SCALE).exp(), means + mean
