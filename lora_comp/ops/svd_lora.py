"""The low-rank update of a linear layer: W + scale U diag(s) V^T (LoRA_comp, CVPR 2025, eq. 3)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_comp import _C

FUSED_TYPES = (torch.float32, torch.bfloat16)
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
        ValueError: shapes that do not fit each other.
    """
    kind = "cpu" if x.is_cpu else x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad)) or not torch.is_grad_enabled()
    known = kind == "cpu" or (kind == "cuda" and _C.has_cuda)
    fused = frozen and known and x.dtype in FUSED_TYPES and x.dtype == weight.dtype and u.dtype in FUSED_TYPES
    if not (fused and (bias is None or bias.dtype == x.dtype)):
        _sizes(x, weight, bias, u, s, v)
        return plain_svd_lora_linear(x, weight, bias, u, s, v, scale)
    if not u.dtype == s.dtype == v.dtype == torch.float32:
        u, s, v = u.float(), s.float(), v.float()
    if torch.compiler.is_compiling():
        return _operator(x, weight, bias, u, s, v, scale)[0]
    return _Eager.apply(x, weight, bias, u, s, v, scale)


def merge(weight: Tensor, u: Tensor, s: Tensor, v: Tensor, scale: float) -> Tensor:
    """The updated weight itself, (out, in): what a decoder that runs at the plain codec's speed uses."""
    return weight + scale * (u * s) @ v.T


def _sizes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    s: Tensor,
    v: Tensor,
) -> tuple[int, int, int, int, int]:
    """batch, n, in, out and rank, if the shapes fit each other."""
    if weight.dim() != 2:
        raise ValueError(f"weight must be (out, in), not {tuple(weight.shape)}")
    out, inputs = weight.shape
    *leading, width = x.shape or (None,)
    if width != inputs:
        raise ValueError(f"x must be (..., {inputs}) for a weight of {tuple(weight.shape)}, not {tuple(x.shape)}")
    if bias is not None and bias.shape != (out,):
        raise ValueError(f"bias must be ({out},), not {tuple(bias.shape)}")
    *batch, rank = s.shape or (0,)
    if len(batch) > 1 or rank == 0:
        raise ValueError(f"s must be (r,) or (B, r) with a rank r of at least 1, not {tuple(s.shape)}")
    if batch and leading[:1] != batch:
        raise ValueError(f"x must be ({batch[0]}, ..., {inputs}), an entry an adapter, not {tuple(x.shape)}")
    for name, value, rows in (("u", u, out), ("v", v, inputs)):
        if value.shape != (*batch, rows, rank):
            raise ValueError(f"{name} must be {(*batch, rows, rank)}, not {tuple(value.shape)}")
    rows = math.prod(leading[1:]) if batch else math.prod(leading)
    return batch[0] if batch else 1, rows, inputs, out, rank


def _padded(rank: int) -> int:
    return -(-rank // 4) * 4


def run(kernel: Callable, x: Tensor, *arguments) -> None:
    """A kernel of `_C` on x's device, in x's type; on a GPU on its current stream."""
    if not x.is_cuda:
        kernel(*arguments, x.dtype == torch.bfloat16, torch.get_num_threads(), None)
        return
    with torch.cuda.device(x.device):
        kernel(*arguments, x.dtype == torch.bfloat16, 1, torch.cuda.current_stream().cuda_stream)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _inputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    s: Tensor,
    v: Tensor,
) -> tuple[tuple[int, ...], tuple[int, ...], bool, tuple]:
    """Addresses of all six and the sizes, whether the kernel multiplies by the weight too, and what lies there."""
    sizes = _sizes(x, weight, bias, u, s, v)
    tensors = tuple([None if a is None else a.contiguous() for a in (x, weight, bias, u, s, v)])
    addresses = [_address(a) for a in tensors]
    whole = sizes[-1] <= TENSOR_CORE_RANK and x.dtype == torch.bfloat16 if x.is_cuda else x.dtype == torch.float32
    if not whole:
        addresses[1:3] = 0, 0
    return tuple(addresses), sizes, whole, tensors


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
    addresses, sizes, whole, (x, weight, bias, u, _, _) = _inputs(x, weight, bias, u, s, v)
    batch, n, _, out, rank = sizes
    y = x.new_empty(*x.shape[:-1], out) if whole else F.linear(x, weight, bias)
    t = u.new_empty(batch, n, _padded(rank))
    if batch * n * out:
        run(_C.low_rank_linear_forward, x, addresses, y.data_ptr(), t.data_ptr(), sizes, scale)
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
    grad = grad.contiguous()
    addresses, sizes, whole, (x, weight, _, u, s, v) = _inputs(x, weight, None, u, s, v)
    grads = [torch.empty_like(a) if w else None for a, w in zip((x, u, s, v), wanted, strict=True)]
    if wanted[0] and not whole:
        grads[0] = (grad @ weight).contiguous()
    if grad.numel() == 0:
        return [None if g is None else g.zero_() for g in grads]
    space = t.new_empty(_C.low_rank_linear_space(sizes)) if x.is_cuda else None
    to = tuple([_address(g) for g in grads])
    run(_C.low_rank_linear_backward, x, addresses, grad.data_ptr(), t.data_ptr(), _address(space), to, sizes, scale)
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
    return [x.new_empty(0) if g is None else g for g in grads]


@_operator.register_fake
def _(x, weight, bias, u, s, v, scale):
    batch, n, _, out, rank = _sizes(x, weight, bias, u, s, v)
    return x.new_empty(*x.shape[:-1], out), u.new_empty(batch, n, _padded(rank))


@_gradients.register_fake
def _(grad, x, weight, u, s, v, t, scale, wanted):
    return [a.new_empty(a.shape if w else 0) for a, w in zip((x, u, s, v), wanted, strict=True)]


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
