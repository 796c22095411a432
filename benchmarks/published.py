"""The published formulation of a Swin block with SVD-LoRA, in torch: what `ops.swin_block` is measured against.

The update is added to the weight, whose dense gradient autograd then forms; attention is two matrix products and a
softmax on windows that were cut out of a rolled map (Liu et al., "Swin Transformer", ICCV 2021).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor

from lora_comp import objective, ops
from lora_comp.ops import Layer, Parts
from lora_comp.ops.window_attention import regions


def linear(x: Tensor, layer: Layer) -> Tensor:
    if layer.u is None:
        return F.linear(x, layer.weight, layer.bias)
    u, v = (factor.flatten(0, -2) for factor in (layer.u, layer.v))  # of all images, or of one
    return F.linear(x, layer.weight + (u * layer.s) @ v.T, layer.bias)


def attention(x: Tensor, parts: Parts, window: int, shift: int) -> Tensor:
    b, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    padded = x.shape[1:3]
    heads, rows, columns = len(parts.position), padded[0] // window, padded[1] // window
    x = x.roll((-shift, -shift), (1, 2)) if shift else x
    x = x.view(b, rows, window, columns, window, channels).transpose(2, 3).reshape(-1, window**2, channels)
    q, k, v = linear(x, parts.qkv).view(len(x), window**2, 3, heads, -1).permute(2, 0, 3, 1, 4)
    logits = q * (channels // heads) ** -0.5 @ k.mT + parts.position.mT  # (windows, heads, N, N): query, key
    if shift or padded != (height, width):
        region = regions(height, width, window, shift, x.device)
        apart = (region[:, None, :] != region[:, :, None]) * -100.0  # (windows of a map, N, N)
        logits = (logits.view(b, -1, *logits.shape[1:]) + apart[:, None]).view(logits.shape)
    x = linear((logits.softmax(-1) @ v).transpose(1, 2).flatten(2), parts.proj)
    x = x.view(b, rows, columns, window, window, channels).transpose(2, 3).reshape(b, *padded, channels)
    x = x.roll((shift, shift), (1, 2)) if shift else x
    return x[:, :height, :width]


def swin_block(x: Tensor, parts: Parts, window: int, shift: int) -> Tensor:
    channels = x.shape[3:]
    x = x + attention(F.layer_norm(x, channels, *parts.norm1), parts, window, shift)
    return x + linear(F.gelu(linear(F.layer_norm(x, channels, *parts.norm2), parts.fc1)), parts.fc2)


@contextmanager
def formulation() -> Iterator[None]:
    """All Swin blocks as above, and test-time fine-tuning in float32."""
    with patch.object(ops, "swin_block", swin_block), patch.object(objective, "use_bf16", lambda device: False):
        yield
