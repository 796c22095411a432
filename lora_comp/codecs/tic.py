"""TIC with a mean-scale hyperprior, as it is used in image coding for machines.

Lu et al., "Transformer-based Image Compression", DCC 2022; the variant without a context model is that of Chen et al.,
"Transferring Transformer-based Image Compression from Human Perception to Machine Perception", ICCV 2023.

    x (B, 3, H, W) --g_a--> y (B, M, H/16, W/16) --h_a--> z (B, N, H/64, W/64)
    z_hat = round(z) --h_s--> scales, means          y_hat = round(y - means) + means --g_s--> x_hat (B, 3, H, W)
"""

from collections.abc import Sequence

from torch import Tensor, nn

from lora_comp.codecs.hyperprior import HyperpriorCodec
from lora_comp.codecs.swin import RSTB, init_weights
from lora_comp.entropy import models
from lora_comp.entropy.mean_scale import MeanScale
from lora_comp.entropy.models import EntropyBottleneck
from lora_comp.entropy.prior import Prior
from lora_comp.ops import gdn


def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2)


def deconv(inputs: int, outputs: int, kernel: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, output_padding=1, padding=kernel // 2)


class GDN(models.GDN):
    """CompressAI's GDN, computed by `ops.gdn`: x (B, C, H, W), same shape out."""

    def forward(self, x: Tensor) -> Tensor:
        return gdn(x, self.beta_reparam(self.beta), self.gamma_reparam(self.gamma), self.inverse)


class TIC(HyperpriorCodec):
    """The transforms g_a, g_s, h_a, h_s and the probability models of y and z.

    Args:
        N: channels of the transforms and of z.
        M: channels of y.
        depths: Swin blocks at strides 2, 4, 8, 16 of g_a (g_s mirrors them). A stage of depth 0 is a GDN layer
            (Balle et al., ICLR 2017), so that convolutions are always separated by a nonlinearity.
        heads: attention heads at the same strides.
        hyper_heads: attention heads in h_a and h_s, whose stages have two blocks each.
        prior: the `entropy.prior.Prior` of y; None for `MeanScale`.
    """

    def __init__(
        self,
        N: int = 128,
        M: int = 192,
        depths: Sequence[int] = (2, 4, 6, 2),
        heads: Sequence[int] = (8, 8, 8, 16),
        hyper_heads: int = 16,
        prior: Prior | None = None,
    ):
        super().__init__()
        self.N, self.M = N, M
        dims = (N, N, N, M)

        def stage(i: int, inverse: bool = False) -> nn.Module:
            if depths[i] == 0:
                return GDN(dims[i], inverse=inverse)
            return RSTB(dims[i], depths[i], heads[i], window=8, shifts=True)

        self.g_a = nn.Sequential(
            conv(3, N, 5), stage(0), conv(N, N, 3), stage(1), conv(N, N, 3), stage(2), conv(N, M, 3), stage(3)
        )
        self.g_s = nn.Sequential(
            stage(3),
            deconv(M, N, 3),
            stage(2),
            deconv(N, N, 3),
            stage(1),
            deconv(N, N, 3),
            stage(0, inverse=True),
            deconv(N, 3, 5),
        )
        hyper = dict(dim=N, depth=2, heads=hyper_heads, window=4)
        self.h_a = nn.Sequential(conv(M, N, 3), RSTB(**hyper, shifts=True), conv(N, N, 3), RSTB(**hyper, shifts=False))
        self.h_s = nn.Sequential(
            RSTB(**hyper, shifts=False), deconv(N, N, 3), RSTB(**hyper, shifts=True), deconv(N, 2 * M, 3)
        )
        self.prior = MeanScale() if prior is None else prior
        self.entropy_bottleneck = EntropyBottleneck(N)
        self.apply(init_weights)
