"""ONNX's operators with weights or windows, as functions of tensors: see `onnx_ops`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_comp.networks.onnx_ops import Numbers, integers, rounded

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
LARGEST: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _padding(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Numbers | None, auto: str
) -> tuple[list[int], list[int]]:
    """Of each spatial axis, the padding before and after it."""
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        given = [0] * 2 * len(kernel) if pads is None or auto == "VALID" else integers(pads)
        return given[: len(kernel)], given[len(kernel) :]
    sums = [
        max((-(-length // stride) - 1) * stride + dilation * (side - 1) + 1 - length, 0)
        for length, side, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    less, more = [amount // 2 for amount in sums], [amount - amount // 2 for amount in sums]
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    pairs = zip(reversed(before), reversed(after), strict=True)
    return F.pad(x, [side for pair in pairs for side in pair], value=value)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    ones = [1] * (x.ndim - 2)
    strides, dilations = strides or ones, dilations or ones
    before, after = _padding(x, weight.shape[2:], strides, dilations, pads, auto_pad)
    if before != after:
        x, before = _padded(x, before, after), [0] * len(ones)
    return CONV[x.ndim - 2](x, weight, bias, strides, before, dilations, group)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """Without its padding, which takes from the output, it is computed whole and cut."""
    axes = x.ndim - 2
    strides, dilations, extra = strides or [1] * axes, dilations or [1] * axes, output_padding or [0] * axes
    before, after = _padding(x, weight.shape[2:], strides, dilations, pads, "NOTSET")
    if auto_pad.startswith("SAME") and not output_shape:
        output_shape = [length * stride for length, stride in zip(x.shape[2:], strides, strict=True)]
    if not output_shape and before == after:
        return TRANSPOSED[axes](x, weight, bias, strides, before, extra, group, dilations)
    whole = TRANSPOSED[axes](x, weight, bias, strides, 0, 0, group, dilations)
    lengths = [length + more for length, more in zip(whole.shape[2:], extra, strict=True)]
    if output_shape:
        sums = [length - wanted for length, wanted in zip(lengths, output_shape[-axes:], strict=True)]
        less, more = [amount // 2 for amount in sums], [amount - amount // 2 for amount in sums]
        before, after = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    tail = [more - amount for more, amount in zip(extra, after, strict=True)]
    out = _padded(whole, [-amount for amount in before], tail)
    if bias is not None and max(tail) > 0:  # beyond the windows the bias alone is left
        out = _padded(whole - (spread := bias.reshape(-1, *[1] * axes)), [-amount for amount in before], tail) + spread
    return out


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    storage_order: int = 0,
) -> Tensor:
    ones = [1] * len(kernel_shape)
    strides, dilations = strides or ones, dilations or ones
    before, after = _padding(x, kernel_shape, strides, dilations, pads, auto_pad)
    if before != after or any(2 * low > side for low, side in zip(before, kernel_shape, strict=True)):
        x, before = _padded(x, before, after, float("-inf")), [0] * len(ones)
    return LARGEST[len(ones)](x, kernel_shape, strides, before, dilations, bool(ceil_mode))


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    ones = [1] * len(kernel_shape)
    strides = strides or ones
    if max(dilations or ones) > 1:
        raise NotImplementedError("dilations")
    before, after = _padding(x, kernel_shape, strides, ones, pads, auto_pad)
    pool = AVERAGE[len(ones)]
    if before == after and all(2 * low <= side for low, side in zip(before, kernel_shape, strict=True)):
        return pool(x, kernel_shape, strides, before, bool(ceil_mode), bool(count_include_pad))
    counted = _padded(torch.ones_like(x[:1, :1]), before, after, float(count_include_pad))
    sums, counts = (
        pool(part, kernel_shape, strides, 0, bool(ceil_mode)) for part in (_padded(x, before, after), counted)
    )
    return sums / counts


def lp_pool(x: Tensor, *, kernel_shape: Sequence[int], p: int = 2, **window: Any) -> Tensor:
    means = average_pool(x.abs() ** p, kernel_shape=kernel_shape, count_include_pad=1, **window)
    return (means * math.prod(kernel_shape)) ** (1 / p)


def global_pool(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x, tuple(range(2, x.ndim)), True)


def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return torch.linalg.vector_norm(x, p, tuple(range(2, x.ndim)), True)


# Normalisation


def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
    is_test: int = 1,
) -> Tensor:
    """With the file's statistics, also where it was exported in training mode."""
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.group_norm(x, x.shape[1], scale, bias, epsilon)


def group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Until ONNX 20 scale and bias are those of groups, since then those of channels."""
    if len(scale) == num_groups != x.shape[1]:
        scale, bias = (numbers.repeat_interleave(x.shape[1] // num_groups) for numbers in (scale, bias))
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    normal = F.layer_norm(x, x.shape[axis:], eps=epsilon) * scale
    return normal if bias is None else normal + bias


def rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    return F.rms_norm(x, x.shape[axis:], eps=epsilon) * scale


# Sampling and attention


def grid_sample(
    x: Tensor, grid: Tensor, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> Tensor:
    way = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, way, padding_mode, bool(align_corners))


def affine_grid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    return F.affine_grid(theta, integers(size), bool(align_corners))


def deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    offset_group: int = 1,
) -> Tensor:
    from torchvision.ops import deform_conv2d

    padding = (pads[0], pads[1])
    if padding != (pads[2], pads[3]):
        raise NotImplementedError("uneven padding")
    return deform_conv2d(x, offset, weight, bias, tuple(strides), padding, tuple(dilations), mask)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    softmax_precision: int = 0,
) -> Tensor:
    """query, key, value: (B, heads, N, C), or (B, N, heads · C) with the numbers of heads."""
    flat = query.ndim == 3
    if flat:
        heads = zip((query, key, value), (q_num_heads, kv_num_heads, kv_num_heads), strict=True)
        query, key, value = (part.unflatten(2, (number, -1)).transpose(1, 2) for part, number in heads)
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), float("-inf"))
    out = scores.softmax(3) @ value
    return out.transpose(1, 2).flatten(2) if flat else out


# Quantised numbers, as float32


def _along(x: Tensor, numbers: Tensor, axis: int) -> Tensor:
    """Numbers of each index of an axis, shaped to be combined with x."""
    if numbers.ndim != 1 or numbers.numel() == 1:
        return numbers.reshape([]) if numbers.numel() == 1 else numbers
    sides = [1] * x.ndim
    sides[axis] = len(numbers)
    return numbers.reshape(sides)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
) -> Tensor:
    """Rounded straight through: the gradient is 1/scale within the range, and 0 where numbers are clipped."""
    if block_size:
        raise NotImplementedError("block_size")
    kind = torch.uint8 if zero is None or zero.is_floating_point() else zero.dtype
    low, high = torch.iinfo(kind).min, torch.iinfo(kind).max
    shift = 0.0 if zero is None else _along(x, zero, axis).float()
    return (rounded(x / _along(x, scale, axis), torch.round) + shift).clamp(low, high)


def dequantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    if block_size:
        raise NotImplementedError("block_size")
    centred = x.float() if zero is None else x.float() - _along(x, zero, axis).float()
    return centred * _along(x, scale, axis)


LAYERS: dict[str, Callable] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DeformConv": deform_conv,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_pool(torch.mean),
    "GlobalMaxPool": global_pool(torch.amax),
    "LpPool": lp_pool,
    "GlobalLpPool": global_lp_pool,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "GridSample": grid_sample,
    "AffineGrid": affine_grid,
    "Attention": attention,
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
}
