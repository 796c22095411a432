"""What codecs with a hyperprior share: the way from an image to the rate of its latents, and back.

    x (B, 3, H, W) --g_a--> y (B, M, H/16, W/16) --h_a--> z (B, N, H/64, W/64)
    z_hat = round(z) --h_s--> hyper --prior--> scales, means
    y_hat = round(y - means) + means --g_s--> x_hat (B, 3, H, W)

Minnen et al., "Joint Autoregressive and Hierarchical Priors for Learned Image Compression", NeurIPS 2018.
"""

import torch
from torch import Tensor, nn

from lora_comp.codecs.codec import Latents, Output, Rate
from lora_comp.entropy.coder import LatentCoder, cached
from lora_comp.entropy.hyperprior import HyperpriorCoder
from lora_comp.entropy.models import (
    EntropyBottleneck,
    Rounding,
    add_noise,
    bottleneck_likelihood,
    gaussian_likelihood,
    round_ste,
)
from lora_comp.entropy.prior import Prior, quantise


class HyperpriorCodec(nn.Module):
    """A `Codec` of the transforms g_a, g_s, h_a, h_s and the probability models of y and z, which its subclass makes.

    N, M: channels of z and of y.
    gains: names of its gain vectors, for a codec of variable rate.
    """

    name: str  # these four are set by `load_codec`
    quality: float
    rate_point: float | None
    hash: bytes
    stride, latent_stride = 64, 16
    output = Output()
    gains: tuple[str, ...] = ()

    N: int
    M: int
    g_a: nn.Sequential
    g_s: nn.Sequential
    h_a: nn.Module
    h_s: nn.Module
    prior: Prior
    entropy_bottleneck: EntropyBottleneck

    def latents(self, x: Tensor) -> Latents:
        """x (B, 3, H, W), H and W multiples of 64, to y (B, M, H/16, W/16) and z (B, N, H/64, W/64), float32."""
        return self.latents_from(self.analyze(x))

    def analyze(self, x: Tensor) -> Tensor:
        """Analysis transform: x (B, 3, H, W), H and W multiples of 64, to y (B, M, H/16, W/16), float32."""
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(f"the sides of x must be multiples of {self.stride}, not {tuple(x.shape)}")
        return self.g_a(x.contiguous(memory_format=torch.channels_last)).float()

    def latents_from(self, y: Tensor) -> Latents:
        with torch.autocast(y.device.type, enabled=False):  # small maps whose precision affects all rates
            return {"y": y, "z": self.h_a(y)}

    def rate(self, latents: Latents, rounding: Rounding = round_ste) -> Rate:
        """See `codecs.codec.Codec.rate`. In training mode, likelihoods are those under uniform noise, while y_hat is
        still rounded (Minnen and Singh, "Channel-wise Autoregressive Entropy Models", ICIP 2020)."""
        y, z, medians = latents["y"], latents["z"], self.medians[:, None, None]
        with torch.autocast(y.device.type, enabled=False):
            z_hat = rounding(z - medians) + medians
            y_hat, coded, scales, means = quantise(self.prior, y, self.h_s(z_hat), rounding)
            noisy = self.training
            likelihoods = {
                "y": gaussian_likelihood(add_noise(y) if noisy else coded, scales, means),
                "z": bottleneck_likelihood(self.entropy_bottleneck, add_noise(z) if noisy else z_hat),
            }
        return Rate(y_hat, likelihoods, {"z_hat": z_hat, "scales": scales, "means": means})

    def synthesize(self, y_hat: Tensor) -> Tensor:
        """y_hat (B, M, h, w) to x_hat (B, 3, 16 h, 16 w)."""
        return self.g_s(y_hat.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> dict:
        """x_hat, not clamped, and likelihoods {y, z} as in CompressAI; also y, z, y_hat, z_hat, scales and means."""
        latents = self.latents(x)
        rate = self.rate(latents)
        x_hat = self.synthesize(rate.y_hat)
        return {"x_hat": x_hat, "y_hat": rate.y_hat, "likelihoods": rate.likelihoods, **latents, **rate.predictions}

    def coder(self) -> LatentCoder:
        return cached(lambda: HyperpriorCoder(self), self.h_s, self.prior, self.entropy_bottleneck)

    @property
    def medians(self) -> Tensor:
        """Quantisation offsets of z: (N,)."""
        return self.entropy_bottleneck.quantiles[:, 0, 1].detach()
