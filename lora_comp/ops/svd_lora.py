"""The low-rank update of a linear layer: W + scale U diag(s) V^T (LoRA_comp, CVPR 2025, eq. 3)."""
import torch.nn.functional as F
from torch import Tensor


def svd_lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, s: Tensor, v: Tensor, scale: float,
) -> Tensor:
    """y = x W^T + scale ((x V) * s) U^T + b, without forming the updated weight.

    x is (..., in), weight (out, in), bias (out,) or None, u (out, r), s (r,), v (in, r); y is (..., out).
    """
    return F.linear(x, weight, bias) + F.linear((x @ v) * (scale * s), u)


def merge(weight: Tensor, u: Tensor, s: Tensor, v: Tensor, scale: float) -> Tensor:
    """The updated weight itself, (out, in): what a decoder that runs at the plain codec's speed uses."""
    return weight + scale * (u * s) @ v.T
