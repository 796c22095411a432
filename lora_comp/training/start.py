"""Where the training of a codec starts: at a wavelet codec instead of at noise.

The convolutions of g_a begin as a hierarchical Karhunen-Loeve transform: each takes the 2x2 patches under it to their
leading principal components, and g_s begins as its transpose. What a hyperprior predicts begins as the mean and the
deviation of each channel. A codec that starts here has after 200 steps what takes one from random weights thousands.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_comp.codecs.tic import TIC

GAIN = 1.5  # of the first convolution; each residual stage doubles, so that y comes out some 12 times the image


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
def initialise(codec: TIC, images: Tensor) -> None:
    """Set the weights of a new TIC from images (B, 3, H, W), sides multiples of 64."""
    mean = images.mean().item()
    convs = [m for m in codec.g_a if isinstance(m, nn.Conv2d)]
    deconvs = [m for m in codec.g_s if isinstance(m, nn.ConvTranspose2d)][::-1]
    x = images - mean
    for conv, deconv in zip(convs, deconvs, strict=True):
        basis = components(x, conv.out_channels)
        count, inputs = basis.shape[:2]
        at = slice(conv.kernel_size[0] // 2, conv.kernel_size[0] // 2 + 2)
        conv.weight[:count] *= 0.1
        conv.weight[:count, :inputs, at, at] += basis
        deconv.weight *= 0.1
        deconv.weight[:count, :inputs, at, at] += basis
        set_bias(conv, 0.0)
        set_bias(deconv, 0.0)
        x = F.conv2d(x, basis, stride=2)
    stages = [m for m in codec.g_a if hasattr(m, "blocks")]
    convs[0].weight *= GAIN
    set_bias(convs[0], -mean * convs[0].weight.sum((1, 2, 3)))
    for deconv in deconvs[: -len(stages) - 1 : -1]:  # a residual stage before each of these doubles, in g_a and in g_s
        deconv.weight /= 4
    deconvs[0].weight /= GAIN
    set_bias(deconvs[0], mean)
    y = codec.g_a(images)
    set_bias(codec.h_s[-1], torch.cat([y.std((0, 2, 3)), y.mean((0, 2, 3))]))
