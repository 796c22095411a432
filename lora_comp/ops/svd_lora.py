"""The low-rank update of a linear layer: W + scale U diag(s) V^T (LoRA_comp, CVPR 2025, eq. 3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_comp import _C
from lora_comp.ops._call import KERNEL_TYPES, check, empty_unless, run
from lora_comp.shapes import Shapes

SHAPES = Shapes({"weight": "out in", "s": "r", "u": "out r", "v": "in r", "bias": "out", "x": "... in"})
BATCH_SHAPES = Shapes(
    {"weight": "out in", "s": "B r", "u": "B out r", "v": "B in r", "bias": "out", "x": "B ... in"}
)  # an adapter for each entry of x
TENSOR_CORE_RANK = 16  # up to which the CUDA kernel multiplies by W too


def plain_svd_lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    s: Tensor,
    v: Tensor,
    scale: float,
) -> Tensor:
    """The definition of `svd_lora_linear`, in torch."""
    y = F.linear(x, weight, bias)
    if u.dim() == 3:  # an adapter for each entry of the first dimension
        x = x.reshape(len(x), x.shape[1:-1].numel(), x.shape[-1])
    dtype = torch.promote_types(x.dtype, u.dtype)
    update = ((x.to(dtype) @ v.to(dtype)) * (scale * s).unsqueeze(-2)) @ u.mT.to(dtype)
    return y + update.reshape(y.shape).to(y.dtype)


def svd_lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    s: Tensor,
    v: Tensor,
    scale: float,
) -> Tensor:
    """y = x W^T + scale ((x V) * s) U^T + b, with gradients of x, U, s and V and never a dense one of the weight.

    On the CPU in float32, and on a GPU in bfloat16 up to a rank of 16, one kernel does it all, in memory for y and,
    going back, for the gradient of x. In bfloat16 on the CPU, and in float32 on a GPU, torch multiplies by W, and a
    kernel adds the rest. Otherwise, and where W or b wants a gradient, it is `plain_svd_lora_linear`. U, s and V may be
    float32 beside an x and a W of bfloat16: their sums and gradients then are float32. Under autocast x, W and b become
    what nn.Linear would make them; U, s and V stay.

    Args:
        x: (..., in) of any strides, of W's dtype, or (B, ..., in) with an adapter for each of the B.
        weight: (out, in).
        bias: (out,) or None.
        u, s, v: (out, r), (r,), (in, r), or (B, out, r), (B, r), (B, in, r).
    Returns:
        (..., out), of x's dtype.
    Raises:
        ValueError: shapes or devices that do not fit each other.
    """
    _check(x, weight, bias, u, s, v)
    kind = "cpu" if x.is_cpu else x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad)) or not torch.is_grad_enabled()
    known = kind == "cpu" or (kind == "cuda" and _C.has_cuda)
    fused = frozen and known and x.dtype in KERNEL_TYPES and x.dtype == weight.dtype and u.dtype in KERNEL_TYPES
    if not (fused and (bias is None or bias.dtype == x.dtype)):
        return plain_svd_lora_linear(x, weight, bias, u, s, v, scale)
    if not u.dtype == s.dtype == v.dtype == torch.float32:
        u, s, v = u.float(), s.float(), v.float()
    if torch.compiler.is_compiling():
        return _operator(x, weight, bias, u, s, v, scale)[0]
    return _Eager.apply(x, weight, bias, u, s, v, scale)


def merge(weight: Tensor, u: Tensor, s: Tensor, v: Tensor, scale: float) -> Tensor:
    """The updated weight itself, (out, in): what a decoder that runs at the plain codec's speed uses.

    Args:
        weight: (out, in).
        u, s, v: (out, r), (r,), (in, r).
    Raises:
        ValueError: shapes or devices that do not fit each other.
    """
    check(SHAPES, weight, s, u, v)
    return weight + scale * (u * s) @ v.T


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, s: Tensor, v: Tensor) -> None:
    if s.dim() and s.shape[-1] == 0:
        raise ValueError(f"s must have shape (..., r) with a rank r of at least 1, not {tuple(s.shape)}")
    check(BATCH_SHAPES if s.dim() == 2 else SHAPES, weight, s, u, v, bias, x)


def _new_projections(x: Tensor, u: Tensor) -> Tensor:
    """For x V, (batch, n, r): the kernels write a whole number of fours for each row."""
    batch = u.shape[0] if u.dim() == 3 else 1
    return u.new_empty(batch, math.prod(x.shape[u.dim() - 2 : -1]), -(-u.shape[-1] // 4) * 4)


def _whole(x: Tensor, u: Tensor) -> bool:
    """Whether the kernel multiplies by the weight too."""
    if x.is_cuda:
        return x.dtype == torch.bfloat16 and u.shape[-1] <= TENSOR_CORE_RANK
    return x.dtype == torch.float32


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    s: Tensor,
    v: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """y, and t = x V for the gradients."""
    x, weight, u, s, v = [a.contiguous() for a in (x, weight, u, s, v)]
    if whole := _whole(x, u):
        y = x.new_empty(*x.shape[:-1], weight.shape[0])
        bias = bias if bias is None else bias.contiguous()
    else:
        y = F.linear(x, weight, bias)
    t = _new_projections(x, u)
    if y.numel():
        own, bias = (weight, bias) if whole else (None, None)
        run(_C.low_rank_linear_forward, x, x=x, weight=own, bias=bias, u=u, s=s, v=v, scale=scale, y=y, t=t)
    return y, t


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    u: Tensor,
    s: Tensor,
    v: Tensor,
    t: Tensor,
    scale: float,
    wanted: list[bool],
) -> list[Tensor | None]:
    """Gradients of x, u, s and v, or None where not wanted."""
    grad, x, weight, u, s, v = [a.contiguous() for a in (grad, x, weight, u, s, v)]
    whole = _whole(x, u)
    grads = [torch.empty_like(a) if w else None for a, w in zip((x, u, s, v), wanted, strict=True)]
    if wanted[0] and not whole:
        grads[0] = (grad @ weight).contiguous()
    if grad.numel() == 0:
        return [None if g is None else g.zero_() for g in grads]
    space = None
    if x.is_cuda:
        batch, n, _ = t.shape
        outputs, inputs = weight.shape
        space = t.new_empty(_C.low_rank_linear_space(batch, n, inputs, outputs, u.shape[-1]))
    run(
        _C.low_rank_linear_backward,
        x,
        x=x,
        weight=weight if whole else None,
        u=u,
        s=s,
        v=v,
        scale=scale,
        grad_y=grad,
        t=t,
        space=space,
        grad_x=grads[0],
        grad_u=grads[1],
        grad_s=grads[2],
        grad_v=grads[3],
    )
    return grads


_KINDS = ("cpu", "cuda")


@torch.library.custom_op("lora_comp::svd_lora_linear", mutates_args=(), device_types=_KINDS)
def _operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    s: Tensor,
    v: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return _forward(x, weight, bias, u, s, v, scale)


@torch.library.custom_op("lora_comp::svd_lora_linear_backward", mutates_args=(), device_types=_KINDS)
def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    u: Tensor,
    s: Tensor,
    v: Tensor,
    t: Tensor,
    scale: float,
    wanted: list[bool],
) -> list[Tensor]:
    """Empty where not wanted."""
    grads = _backward(grad, x, weight, u, s, v, t, scale, wanted)
    return [a.new_empty(0) if g is None else g for a, g in zip((x, u, s, v), grads, strict=True)]


@_operator.register_fake
def _(x, weight, bias, u, s, v, scale):
    return x.new_empty(*x.shape[:-1], len(weight)), _new_projections(x, u)


@_gradients.register_fake
def _(grad, x, weight, u, s, v, t, scale, wanted):
    return [empty_unless(w, a) for a, w in zip((x, u, s, v), wanted, strict=True)]


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, u, s, v, ctx.scale = inputs
    ctx.save_for_backward(x, weight, u, s, v, output[1])
    ctx.mark_non_differentiable(output[1])


def _wanted(ctx) -> list[bool]:
    x, _, _, u, s, v, *_ = ctx.needs_input_grad
    return [x, u, s, v]


def _differentiate(ctx, grad: Tensor, _: Tensor) -> tuple:
    wanted = _wanted(ctx)
    grads = _gradients(grad, *ctx.saved_tensors, ctx.scale, wanted)
    x, u, s, v = (g if w else None for g, w in zip(grads, wanted, strict=True))
    return x, None, None, u, s, v, None


_operator.register_autograd(_differentiate, setup_context=_keep)


class _Eager(torch.autograd.Function):
    """The operator without its way through torch's dispatcher, which costs a small layer a sixth of its time."""

    @staticmethod
    def forward(ctx, x, weight, bias, u, s, v, scale):
        y, t = _forward(x, weight, bias, u, s, v, scale)
        ctx.save_for_backward(x, weight, u, s, v, t)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx, grad):
        x, u, s, v = _backward(grad, *ctx.saved_tensors, ctx.scale, _wanted(ctx))
        return x, None, None, u, s, v, None
