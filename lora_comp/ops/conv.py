"""A convolution of 3x3 in a quarter of the multiplications.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: F(4x4, 3x3).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_comp import _C
from lora_comp.ops._call import check
from lora_comp.shapes import Shapes

SHAPES = Shapes({"x": "B C H W", "more": "B D H W", "weight": "out in 3 3", "bias": "out"})
FUSED_CHANNELS = 16  # what the kernel knows: multiples of this
G = (  # 6 products of 3 weights
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def plain_conv3x3(x: Tensor, weight: Tensor, bias: Tensor, more: Tensor | None = None, relu: bool = False) -> Tensor:
    """The definition of `conv3x3`, in torch."""
    y = F.conv2d(x if more is None else torch.cat([x, more], 1), weight, bias, padding=1)
    return F.relu(y) if relu else y


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    more: Tensor | None = None,
    relu: bool = False,
    products: Tensor | None = None,
) -> Tensor:
    """A convolution with stride 1 and padding 1 of one map, or of the channels of two, and a ReLU if wanted.

    Where nothing wants a gradient, on the CPU, in float32 and of channels in multiples of 16, it is one fused kernel,
    whose relative error is some 1e-6 where that of a direct sum is 3e-7. Elsewhere, and under `torch.autocast`, it is
    `plain_conv3x3`.

    Args:
        x: (B, C, H, W). The kernel reads and writes channels_last.
        weight: (out, C + D, 3, 3).
        bias: (out,).
        more: (B, D, H, W); None: D is 0.
        products: `products_of(weight)`, if they are known.
    Returns:
        (B, out, H, W).
    Raises:
        ValueError: shapes or devices that do not fit each other.
    """
    sizes = check(SHAPES, x, more, weight, bias)
    channels = [x.shape[1], 0 if more is None else more.shape[1]]
    if sizes["in"] != sum(channels):
        raise ValueError(f"weight must have {sum(channels)} inputs, not {sizes['in']}")
    tensors = [t for t in (x, weight, bias, more) if t is not None]
    fused = (
        all([t.dtype == torch.float32 and t.is_cpu and t.numel() > 0 for t in tensors])
        and not (torch.is_grad_enabled() and any([t.requires_grad for t in tensors]))
        and not torch.is_autocast_enabled("cpu")
        and not any([size % FUSED_CHANNELS for size in (*channels, len(bias))])
    )
    if not fused:
        return plain_conv3x3(x, weight, bias, more, relu)
    maps = [None if t is None else t.permute(0, 2, 3, 1) for t in (x, more)]
    return _fused(*maps, products_of(weight) if products is None else products, bias, relu).permute(0, 3, 1, 2)


def products_of(weight: Tensor) -> Tensor:
    """G w G^T of each pair of channels: (out, in, 3, 3) to (6, 6, in, out)."""
    g = torch.tensor(G, dtype=torch.float64, device=weight.device)
    return torch.einsum("ak,oikl,bl->abio", g, weight.double(), g).float().contiguous()


@torch.library.custom_op("lora_comp::conv3x3", mutates_args=(), device_types="cpu")
def _fused(x: Tensor, more: Tensor | None, products: Tensor, bias: Tensor, relu: bool) -> Tensor:
    y = x.new_empty(*x.shape[:3], products.shape[3])
    _C.conv3x3(
        x=x.contiguous(),
        more=None if more is None else more.contiguous(),
        weight=products.contiguous(),
        bias=bias.contiguous(),
        relu=relu,
        y=y,
        threads=torch.get_num_threads(),
    )
    return y


@_fused.register_fake
def _(x: Tensor, more: Tensor | None, products: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return x.new_empty(*x.shape[:3], products.shape[3])
