"""Self-attention in the shifted windows of a feature map (Liu et al., "Swin Transformer", ICCV 2021, eq. 4)."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_comp import _C
from lora_comp.ops._call import KERNEL_TYPES, check, empty_unless, run
from lora_comp.shapes import Shapes

SHAPES = Shapes({"qkv": "B H W 3 heads dim", "bias": "heads N N"})
MASKED = -100.0  # added to the logit of a forbidden pair: exp(-100) is 0 in float32, and no row becomes NaN
FUSED_WINDOWS, FUSED_DIM = (4, 8), 32  # what the kernels know


def partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B, windows, window * window, C); H and W are multiples of `window`."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(b, -1, window * window, c)


def merge(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`: (B, windows, window * window, C) to (B, height, width, C)."""
    b, _, _, c = x.shape
    x = x.view(b, height // window, width // window, window, window, c).transpose(2, 3)
    return x.reshape(b, height, width, c)


@lru_cache(maxsize=32)
def regions(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Who may attend to whom: int32 (windows, N), tokens of a window with equal numbers see each other.

    After the cyclic shift the last window of a row holds two strips that are no neighbours in the image, and the
    padding of a map that is no multiple of the window belongs to nobody.
    """

    def axis(size: int) -> Tensor:
        padded = -(-size // window) * window
        number = torch.zeros(padded, dtype=torch.int32)
        if shift:
            number[-window:-shift] = 1
            number[-shift:] = 2
        number[((torch.arange(padded) + shift) % padded) >= size] = 3
        return number

    number = axis(height)[:, None] * 4 + axis(width)[None, :]
    return partition(number[None, :, :, None], window)[0, :, :, 0].to(device)


def plain_window_attention(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """The definition of `window_attention`, in torch."""
    b, height, width, _, heads, dim = qkv.shape
    x = F.pad(qkv.flatten(3), (0, 0, 0, -width % window, 0, -height % window))
    padded = x.shape[1:3]
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    x = partition(x, window)
    windows, n = x.shape[1:3]
    q, k, v = x.view(b, windows, n, 3, heads, dim).permute(3, 0, 1, 4, 2, 5).unbind(0)  # (B, windows, heads, N, dim)
    logits = bias.to(x.dtype).transpose(1, 2)  # (heads, N, N): query, key
    if shift or height % window or width % window:
        number = regions(height, width, window, shift, x.device)
        apart = number[:, None, :, None] != number[:, None, None, :]  # (windows, 1, N, N)
        logits = logits + MASKED * apart.to(x.dtype)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=logits)
    x = merge(x.transpose(2, 3).reshape(b, windows, n, heads * dim), window, *padded)
    if shift:
        x = x.roll((shift, shift), (1, 2))
    return x[:, :height, :width]


def window_attention(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """softmax(q k^T / sqrt(dim) + bias) v in each window of a map that was shifted by `shift`, cyclically.

    A token attends to those of its window that are its neighbours in the image too, never to what pads a map whose
    sides are no multiples of the window. In float32 and bfloat16 one fused kernel does it all, gradients included, in
    memory for one window: on the CPU in numbers of float32, on a GPU with tensor cores in bfloat16. Elsewhere it is
    `plain_window_attention`.

    Args:
        qkv: (B, H, W, 3, heads, dim).
        bias: (heads, N, N) for each key and query of a window, N = window * window.
    Returns:
        (B, H, W, heads * dim), of qkv's dtype.
    Raises:
        ValueError: shapes or devices that do not fit each other, or a shift that is not in [0, window).
    """
    if not 0 <= shift < window:
        raise ValueError(f"shift must be in [0, {window}), the window, not {shift}")
    check(SHAPES, qkv, bias, N=window * window)
    known = qkv.is_cpu or (qkv.is_cuda and _C.has_cuda)
    fused = (
        known
        and qkv.dtype in KERNEL_TYPES
        and qkv.numel() > 0
        and window in FUSED_WINDOWS
        and qkv.shape[5] <= FUSED_DIM
    )
    if not fused:
        return plain_window_attention(qkv, bias, window, shift)
    return _fused(qkv.float() if qkv.is_cpu else qkv, bias.float(), window, shift).flatten(3).to(qkv.dtype)


@torch.library.custom_op("lora_comp::window_attention", mutates_args=(), device_types=("cpu", "cuda"))
def _fused(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    qkv, bias = qkv.contiguous(), bias.contiguous()
    out = qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])
    run(_C.window_attention_forward, qkv, qkv=qkv, bias=bias, window=window, shift=shift, out=out)
    return out


@_fused.register_fake
def _(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])


@torch.library.custom_op("lora_comp::window_attention_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _backward(qkv: Tensor, bias: Tensor, grad: Tensor, window: int, shift: int, wants_bias: bool) -> list[Tensor]:
    qkv, bias, grad = qkv.contiguous(), bias.contiguous(), grad.contiguous()
    grad_qkv, grad_bias = empty_unless(True, qkv), empty_unless(wants_bias, bias).zero_()
    run(
        _C.window_attention_backward,
        qkv,
        qkv=qkv,
        bias=bias,
        window=window,
        shift=shift,
        grad_out=grad,
        grad_qkv=grad_qkv,
        grad_bias=grad_bias if wants_bias else None,
    )
    return [grad_qkv, grad_bias]


@_backward.register_fake
def _(qkv: Tensor, bias: Tensor, grad: Tensor, window: int, shift: int, wants_bias: bool) -> list[Tensor]:
    return [empty_unless(True, qkv), empty_unless(wants_bias, bias)]


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    qkv, bias, ctx.window, ctx.shift = inputs
    ctx.save_for_backward(qkv, bias)


def _differentiate(ctx, grad: Tensor) -> tuple:
    qkv, bias = ctx.saved_tensors
    grad_qkv, grad_bias = _backward(qkv, bias, grad, ctx.window, ctx.shift, ctx.needs_input_grad[1])
    return grad_qkv, grad_bias if ctx.needs_input_grad[1] else None, None, None


_fused.register_autograd(_differentiate, setup_context=_keep)
