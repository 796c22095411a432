"""Initialisation of a codec as a linear one, that of the Karhunen-Loeve transform.

Each convolution of g_a maps 2x2 patches to their leading principal components, and those of g_s are the transpose. What
is not linear adds nothing at first: the last layers of residual branches are zero, and GDN is nearly the identity. The
hyperprior predicts the mean and standard deviation of each channel whatever z is, since its last layer is zero too.
Training from here reaches in 200 steps what takes thousands from random weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_comp.codecs.swin import SwinBlock
from lora_comp.codecs.tic import GDN, TIC

SPARE = 0.1  # of the random weights, in channels that carry no component
GAMMA = 0.01  # of GDN


def step(lmbda: float) -> float:
    """The quantiser's step in [0, 1] for which an orthonormal transform has the least bpp + lambda 255^2 MSE.

    At high rate MSE = step^2 / 12 and d bits / d step = -1 / (step ln 2) for each of three coefficients a pixel, so
    3 / (step ln 2) = lambda 255^2 step / 6.
    """
    return math.sqrt(18 / (lmbda * 255**2 * math.log(2)))


def components(x: Tensor, count: int) -> Tensor:
    """The leading principal components of the 2x2 patches of x (B, C, H, W): (k, C, 2, 2), k = min(count, 4 C)."""
    patches = F.pixel_unshuffle(x, 2).permute(0, 2, 3, 1).flatten(0, 2).double()  # (B H W / 4, 4 C)
    _, vectors = torch.linalg.eigh(patches.T @ patches)
    leading = vectors.flip(1).T[: min(count, vectors.shape[0])]
    return leading.view(-1, x.shape[1], 2, 2).float()


def set_bias(layer: nn.Module, value: Tensor | float) -> None:
    assert isinstance(layer.bias, Tensor)
    layer.bias.copy_(torch.as_tensor(value))


@torch.no_grad()
def initialise(codec: TIC, images: Tensor, lmbda: float) -> None:
    """Set the weights of a new TIC from images, float32 (B, 3, H, W) in [0, 1], sides multiples of 64.

    lmbda: that of the quality whose gain is 1, or of the only one.
    """
    mean = images.mean().item()
    convs = [m for m in codec.g_a if isinstance(m, nn.Conv2d)]
    deconvs = [m for m in codec.g_s if isinstance(m, nn.ConvTranspose2d)][::-1]
    x = images - mean
    for conv, deconv in zip(convs, deconvs, strict=True):
        basis = components(x, conv.out_channels)
        count, inputs = basis.shape[:2]
        at = slice(conv.kernel_size[0] // 2, conv.kernel_size[0] // 2 + 2)
        for layer in (conv, deconv):
            layer.weight[:count] = 0
            layer.weight[count:] *= SPARE
            layer.weight[:count, :inputs, at, at] = basis
            set_bias(layer, 0.0)
        x = F.conv2d(x, basis, stride=2)
    stages = sum(hasattr(m, "blocks") for m in codec.g_a)  # each doubles its input
    gain = 1 / step(lmbda) / 2**stages
    convs[0].weight *= gain
    set_bias(convs[0], -mean * convs[0].weight.sum((1, 2, 3)))
    for deconv in deconvs[: -stages - 1 : -1]:  # preceded by stages, which double in g_a and g_s
        deconv.weight /= 4
    deconvs[0].weight /= gain
    set_bias(deconvs[0], mean)
    for part in [*codec.g_a.modules(), *codec.g_s.modules()]:
        if isinstance(part, GDN):
            part.gamma.copy_(part.gamma_reparam.init(GAMMA * torch.eye(len(part.gamma))))
        if isinstance(part, SwinBlock):
            for last in (part.attn.proj, part.mlp.fc2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
    assert isinstance(codec.h_s, nn.Sequential)
    y, hyper = codec.g_a(images), codec.h_s[-1]
    assert isinstance(hyper, nn.ConvTranspose2d)
    nn.init.zeros_(hyper.weight)
    set_bias(hyper, torch.cat([y.std((0, 2, 3)), y.mean((0, 2, 3))]))
