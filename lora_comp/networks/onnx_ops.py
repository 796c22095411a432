"""ONNX's operators on numbers, as functions of tensors; others are in `onnx_shapes`, `onnx_layers`, `onnx_resize`.

Each takes the operator's inputs in their order, None for one that is left out, and its attributes by name. Where a
later version of ONNX made an attribute an input, both have one name, so that one function serves all versions.
"""

from collections.abc import Callable, Sequence

import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

Numbers = Tensor | Sequence[int] | int  # of an input or an attribute


def integers(numbers: Numbers) -> list[int]:
    if isinstance(numbers, Tensor):
        return [int(number) for number in numbers.flatten().tolist()]
    return [numbers] if isinstance(numbers, int) else list(numbers)


def rounded(x: Tensor, way: Callable[[Tensor], Tensor]) -> Tensor:
    """`way(x)`, torch.round or torch.trunc, whose gradient is taken to be 1 (straight through)."""
    return x + (way(x) - x).detach()


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Types of fewer than 32 bits and maps (N, C, H, W) are images or what is computed from them, not indices: they are
    truncated straight through and stay float32, so that a gradient arrives."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(to)
    if kind.kind == "b":
        return x.bool()
    if kind.kind not in "iu":
        return x.float()
    if x.is_floating_point() and (kind.itemsize < 4 or x.ndim == 4):
        return rounded(x, torch.trunc)
    return x.long()


def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(like.dtype)


def clip(x: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None) -> Tensor:
    low, high = (
        None if bound is None else torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (min, max)
    )
    return x if low is high is None else torch.clamp(x, low, high)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    broadcast: int = 1,
) -> Tensor:
    product = (a.T if transA else a) @ (b.T if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def selu(x: Tensor, *, alpha: float = 1.6732632, gamma: float = 1.0507010) -> Tensor:
    return gamma * F.elu(x, alpha)


def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    return (x.isposinf() & bool(detect_positive)) | (x.isneginf() & bool(detect_negative))


def dropout(
    x: Tensor, ratio: Tensor | float = 0.5, training_mode: Tensor | None = None, *, seed: int = 0, is_test: int = 1
) -> Tensor:
    return x


def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def mean(*each: Tensor) -> Tensor:
    return total(*each) / len(each)


def total(*each: Tensor) -> Tensor:
    return sum(each[1:], each[0])


def largest(*each: Tensor) -> Tensor:
    return _folded(torch.maximum, each)


def smallest(*each: Tensor) -> Tensor:
    return _folded(torch.minimum, each)


def _folded(function: Callable[[Tensor, Tensor], Tensor], each: Sequence[Tensor]) -> Tensor:
    first, *others = each
    for other in others:
        first = function(first, other)
    return first


def cumulated(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(axis)
    sums = (x.flip(along) if reverse else x).cumsum(along)
    if exclusive:
        sums = sums.roll(1, along).index_fill(along, torch.zeros(1, dtype=torch.int64, device=x.device), 0)
    return sums.flip(along) if reverse else sums


# Reductions


def reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    def reduced(x: Tensor, axes: Numbers | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        over = tuple(integers(axes)) if axes is not None else ()
        if not over and not noop_with_empty_axes:
            over = tuple(range(x.ndim))
        return function(x, over, bool(keepdims)) if over else function(x[None], (0,), False)

    return reduced


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def mean_variance(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    over = tuple(axes)
    return (x - x.mean(over, True)) / (x.var(over, correction=0, keepdim=True).sqrt() + 1e-9)


def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return F.normalize(x, float(p), axis)


REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceSum": torch.sum,
    "ReduceMean": torch.mean,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x.float(), 2, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
}

OPERATORS: dict[str, Callable] = {
    "Cast": cast,
    "CastLike": cast_like,
    "Clip": clip,
    "Gemm": gemm,
    "HardSigmoid": hard_sigmoid,
    "ThresholdedRelu": thresholded_relu,
    "Shrink": shrink,
    "Gelu": gelu,
    "Swish": swish,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
    "Hardmax": hardmax,
    "Selu": selu,
    "IsInf": is_inf,
    "Dropout": dropout,
    "GreaterOrEqual": torch.ge,
    "LessOrEqual": torch.le,
    "Mod": mod,
    "CumSum": cumulated,
    "Mean": mean,
    "Sum": total,
    "Max": largest,
    "Min": smallest,
    "Acosh": torch.acosh,
    "Asinh": torch.asinh,
    "Atanh": torch.atanh,
    "Cosh": torch.cosh,
    "Sinh": torch.sinh,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "BitwiseNot": torch.bitwise_not,
    "MeanVarianceNormalization": mean_variance,
    "LpNormalization": lp_norm,
    **{name: reduction(function) for name, function in REDUCTIONS.items()},
}
