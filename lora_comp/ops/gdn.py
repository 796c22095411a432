"""Divisive normalisation and its inverse (Balle et al., "End-to-end Optimized Image Compression", ICLR 2017, eq. 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_comp import _C
from lora_comp.ops._call import KERNEL_TYPES, check, empty_unless
from lora_comp.shapes import Shapes

SHAPES = Shapes({"x": "B C H W", "beta": "C", "gamma": "C C"})
FUSED_CHANNELS = 32  # the CPU kernel knows multiples of this


def plain_gdn(x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool) -> Tensor:
    """The definition of `gdn`, in torch."""
    norm = F.conv2d(x * x, gamma.to(x.dtype)[:, :, None, None], beta.to(x.dtype))
    return x * (norm.sqrt() if inverse else norm.rsqrt())


def gdn(x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool) -> Tensor:
    """x / sqrt(beta + gamma x^2) over the channels of every pixel; x sqrt(beta + gamma x^2) with `inverse`.

    On the CPU in float32 and bfloat16 it is one fused kernel, which keeps nothing but x for the backward pass. For x in
    bfloat16, and so under `torch.autocast`, the product is of bfloat16 numbers where the processor has AMX or AVX-512
    BF16; its sums and all else are float32. Elsewhere, and for channels that are no multiple of 32, it is `plain_gdn`.

    Args:
        x: (B, C, H, W), best in channels_last.
        beta: (C,), above 0.
        gamma: (C, C) for each output and input, not below 0.
    Returns:
        (B, C, H, W), of x's dtype, or of autocast's where that is on; in channels_last from the kernel.
    Raises:
        ValueError: shapes or devices that do not fit each other.
    """
    check(SHAPES, x, beta, gamma)
    kind = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))  # as a convolution would
    fused = (
        kind == "cpu"
        and x.dtype in KERNEL_TYPES
        and x.shape[1] % FUSED_CHANNELS == 0
        and beta.dtype == gamma.dtype == torch.float32
    )
    return _fused(x, beta, gamma, inverse) if fused else plain_gdn(x, beta, gamma, inverse)


def _rows(t: Tensor) -> Tensor:
    """(B, C, H, W) as the kernel reads and writes it: (B, H, W, C), contiguous for a tensor in channels_last."""
    return t.permute(0, 2, 3, 1)


@torch.library.custom_op("lora_comp::gdn", mutates_args=(), device_types="cpu")
def _fused(x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    _C.gdn_forward(
        x=_rows(x),
        beta=beta.contiguous(),
        gamma=gamma.contiguous(),
        inverse=inverse,
        y=_rows(y),
        threads=torch.get_num_threads(),
    )
    return y


@_fused.register_fake
def _(x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("lora_comp::gdn_backward", mutates_args=(), device_types="cpu")
def _backward(x: Tensor, grad: Tensor, beta: Tensor, gamma: Tensor, inverse: bool, trained: bool) -> list[Tensor]:
    """The gradients of x, beta and gamma; those of beta and gamma have no elements unless `trained`."""
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    beta, gamma = beta.contiguous(), gamma.contiguous()
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    grads = [empty_unless(trained, t).zero_() for t in (beta, gamma)]
    _C.gdn_backward(
        x=_rows(x),
        beta=beta,
        gamma=gamma,
        inverse=inverse,
        grad_y=_rows(grad),
        grad_x=_rows(grad_x),
        grad_beta=grads[0] if trained else None,
        grad_gamma=grads[1] if trained else None,
        threads=torch.get_num_threads(),
    )
    return [grad_x, *grads]


@_backward.register_fake
def _(x: Tensor, grad: Tensor, beta: Tensor, gamma: Tensor, inverse: bool, trained: bool) -> list[Tensor]:
    grads = [empty_unless(trained, t) for t in (beta, gamma)]
    return [torch.empty_like(x, memory_format=torch.channels_last), *grads]


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, beta, gamma, ctx.inverse = inputs
    ctx.save_for_backward(x, beta, gamma)


def _differentiate(ctx, grad: Tensor) -> tuple:
    x, beta, gamma = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    grads = _backward(x, grad, beta, gamma, ctx.inverse, wanted[1] or wanted[2])
    return *(g if wants else None for g, wants in zip(grads, wanted, strict=False)), None


_fused.register_autograd(_differentiate, setup_context=_keep)
