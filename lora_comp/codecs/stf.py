"""STF, a Swin Transformer with a channel-wise autoregressive prior.

Zou et al., "The Devil Is in the Details: Window-based Attention for Image Compression", CVPR 2022, section 3.3: stages
of Swin blocks at strides 2, 4, 8, 16, patch merging between those of g_a, patch splitting between those of g_s.

    x (B, 3, H, W) --g_a--> y (B, M, H/16, W/16) --h_a--> z (B, N, H/64, W/64)
    z_hat = round(z) --h_s--> what scales and what means are predicted from, (B, 2 M, H/16, W/16)
    y_hat slice by slice (`entropy.slices`) --g_s--> x_hat (B, 3, H, W)

Images are padded to multiples of 64, as in the published evaluation (there with zeros on all sides), so every feature
map consists of whole windows of 4x4, and the published padding of windows never occurs.

Attention is the fused kernel `ops.window_attention`. The kernel of a whole block, `ops.swin_block`, knows windows of 8
and multiples of 32 channels only, so norms and linear layers here are torch's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_comp.codecs.hyperprior import HyperpriorCodec
from lora_comp.codecs.swin import Stage, init_weights
from lora_comp.entropy.models import EntropyBottleneck
from lora_comp.entropy.slices import Slices

WINDOW = 4


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def upsample(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Sub-pixel convolution: (B, inputs, H, W) to (B, outputs, 2 H, 2 W)."""
    return nn.Sequential(nn.Conv2d(inputs, 4 * outputs, kernel, padding=kernel // 2), nn.PixelShuffle(2))


class PatchEmbedding(nn.Module):
    """2x2 patches and a norm: (B, 3, H, W) to (B, dim, H/2, W/2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 2, stride=2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchMerging(nn.Module):
    """Each 2x2 pixels to one: (B, dim, H, W) to (B, 2 dim, H/2, W/2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, dim, height, width = x.shape
        patches = x.reshape(b, dim, height // 2, 2, width // 2, 2)
        merged = patches.permute(0, 2, 4, 5, 3, 1).flatten(3)  # column and row in the patch, then channel
        return self.reduction(self.norm(merged)).permute(0, 3, 1, 2)


class PatchSplitting(nn.Module):
    """Each pixel to 2x2: (B, dim, H, W) to (B, dim / 2, 2 H, 2 W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.reduction = nn.Linear(dim, 2 * dim, bias=False)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.reduction(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))


class HyperSyntheses(nn.Module):
    """One hyper synthesis for scales and one for means: z_hat (B, N, h, w) to both, (B, 2 M, 4 h, 4 w)."""

    def __init__(self, hyper: Sequence[int], M: int):
        super().__init__()
        self.scales, self.means = self.synthesis(hyper, M), self.synthesis(hyper, M)

    @staticmethod
    def synthesis(hyper: Sequence[int], M: int) -> nn.Sequential:
        return nn.Sequential(
            conv(hyper[4], hyper[3]),
            nn.GELU(),
            upsample(hyper[3], hyper[2]),
            nn.GELU(),
            conv(hyper[2], hyper[1]),
            nn.GELU(),
            upsample(hyper[1], hyper[0]),
            nn.GELU(),
            conv(hyper[0], M),
        )

    def forward(self, z_hat: Tensor) -> Tensor:
        return torch.cat([self.scales(z_hat), self.means(z_hat)], 1)


class STF(HyperpriorCodec):
    """The transforms g_a, g_s, h_a, h_s and the probability models of y and z.

    Args:
        embed: channels at stride 2; they double from stage to stage, so that y has M = 8 embed.
        hyper: outputs of the five convolutions of h_a, mirrored by h_s; the last is z, N channels.
        depths: Swin blocks at strides 2, 4, 8, 16 of g_a (g_s mirrors them).
        heads: attention heads at the same strides.
        slices, seen, hidden: see `entropy.slices.Slices`.
    """

    def __init__(
        self,
        embed: int = 48,
        hyper: Sequence[int] = (384, 336, 288, 240, 192),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        slices: int = 12,
        seen: int = 6,
        hidden: Sequence[int] = (224, 176, 128, 64),
    ):
        super().__init__()
        dims = [embed * 2**i for i in range(4)]
        self.N, self.M = hyper[4], dims[3]

        def stage(i: int) -> Stage:
            return Stage(dims[i], depths[i], heads[i], WINDOW)

        self.g_a = nn.Sequential(
            PatchEmbedding(embed),
            stage(0),
            PatchMerging(dims[0]),
            stage(1),
            PatchMerging(dims[1]),
            stage(2),
            PatchMerging(dims[2]),
            stage(3),
        )
        self.g_s = nn.Sequential(
            stage(3),
            PatchSplitting(dims[3]),
            stage(2),
            PatchSplitting(dims[2]),
            stage(1),
            PatchSplitting(dims[1]),
            stage(0),
            nn.Sequential(*upsample(embed, embed, 5), conv(embed, 3)),
        )
        self.h_a = nn.Sequential(
            conv(self.M, hyper[0]),
            nn.GELU(),
            conv(hyper[0], hyper[1]),
            nn.GELU(),
            conv(hyper[1], hyper[2], stride=2),
            nn.GELU(),
            conv(hyper[2], hyper[3]),
            nn.GELU(),
            conv(hyper[3], hyper[4], stride=2),
        )
        self.h_s = HyperSyntheses(hyper, self.M)
        self.prior = Slices(self.M, slices, seen, hidden)
        self.entropy_bottleneck = EntropyBottleneck(self.N)
        self.apply(init_weights)


STF_S: dict[str, Any] = {  # 3.0 million parameters, which two cores can train
    "embed": 24,
    "hyper": (48, 40, 32, 32, 32),
    "depths": (1, 1, 2, 1),
    "heads": (1, 2, 4, 8),
    "slices": 6,
    "seen": 3,
    "hidden": (16,),
}
