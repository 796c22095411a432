"""ONNX's operators on shapes and indices, as functions of tensors: see `onnx_ops`."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_comp.networks.onnx_ops import Numbers, integers

# Shapes


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), device=x.device)


def reshape(x: Tensor, shape: Numbers, *, allowzero: int = 0) -> Tensor:
    sides = integers(shape)
    return x.reshape([x.shape[i] if side == 0 and not allowzero else side for i, side in enumerate(sides)])


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Tensor, axes: Numbers | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(integers(axes)))


def unsqueeze(x: Tensor, axes: Numbers) -> Tensor:
    places = integers(axes)
    for axis in sorted(axis % (x.ndim + len(places)) for axis in places):
        x = x.unsqueeze(axis)
    return x


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute([*reversed(range(x.ndim))] if perm is None else list(perm))


def expand(x: Tensor, shape: Numbers) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, integers(shape)))


def tile(x: Tensor, repeats: Numbers) -> Tensor:
    return x.repeat(integers(repeats))


def concat(*each: Tensor, axis: int = 1) -> Tensor:
    """Without an axis, as version 1 allows, of channels."""
    return torch.cat(each, axis)


def split(x: Tensor, split: Numbers | None = None, *, axis: int = 0, num_outputs: int = 1) -> tuple[Tensor, ...]:
    sizes = -(-x.shape[axis] // num_outputs) if split is None else integers(split)
    return x.split(sizes, axis)


def cut(x: Tensor, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None) -> Tensor:
    first, last = integers(starts), integers(ends)
    over = range(len(first)) if axes is None else integers(axes)
    strides = [1] * len(first) if steps is None else integers(steps)
    for axis, *bounds in zip(over, first, last, strides, strict=True):
        start, stop, step = slice(*bounds).indices(x.shape[axis])
        if step > 0:
            x = x.movedim(axis, 0)[start:stop:step].movedim(0, axis)
        else:
            x = x.index_select(axis, torch.arange(start, stop, step, device=x.device))
    return x


def pad(
    x: Tensor,
    pads: Numbers,
    value: Tensor | float | None = None,
    axes: Numbers | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    amounts = integers(pads)
    over = range(x.ndim) if axes is None else integers(axes)
    before, after = amounts[: len(amounts) // 2], amounts[len(amounts) // 2 :]
    if mode == "constant":
        sides = {axis % x.ndim: pair for axis, *pair in zip(over, before, after, strict=True)}
        pairs = [side for axis in reversed(range(x.ndim)) for side in sides.get(axis, (0, 0))]
        return F.pad(x, pairs, value=0.0 if value is None else float(value))
    for axis, low, high in zip(over, before, after, strict=True):
        if low or high:
            x = x.index_select(axis, _beyond(mode, x.shape[axis], low, high, x.device))
    return x


def _beyond(mode: str, length: int, low: int, high: int, device: torch.device) -> Tensor:
    """The indices that padding reads."""
    places = torch.arange(-low, length + high, device=device)
    if mode == "wrap":
        return places % length
    if mode == "edge":
        return places.clamp(0, length - 1)
    around = (places % max(2 * length - 2, 1)).abs()
    return torch.minimum(around, 2 * length - 2 - around)


def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    filled = torch.zeros(1) if value is None else value
    return filled.to(shape.device).reshape([]).expand(integers(shape)).clone()


def steps(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def triangle(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if upper else x.tril(diagonal)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    batch, channels, height, width = x.shape
    side, inner = blocksize, channels // blocksize**2
    if mode == "CRD":
        blocks = x.reshape(batch, inner, side, side, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        blocks = x.reshape(batch, side, side, inner, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, inner, height * side, width * side)


def fold(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
) -> Tensor:
    if pads[:2] != pads[2:]:
        raise NotImplementedError("uneven padding")
    return F.fold(
        x, tuple(integers(image_shape)), tuple(integers(block_shape)), tuple(dilations), tuple(pads[:2]), tuple(strides)
    )


def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    x, axis = (x.flatten(), 0) if axis is None else (x, axis)
    return x.index_select(axis, condition.nonzero().flatten())


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // blocksize, width // blocksize)


# Indices


def _wrapped(indices: Tensor, length: int) -> Tensor:
    places = indices.long()
    return torch.where(places < 0, places + length, places)


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.ndim
    places = _wrapped(indices, x.shape[axis])
    found = x.index_select(axis, places.flatten())
    return found.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    items = x.reshape(math.prod(x.shape[:batch_dims]), *x.shape[batch_dims:])
    places = indices.long().reshape(len(items), math.prod(indices.shape[batch_dims:-1]), indices.shape[-1])
    rows = torch.arange(len(items), device=x.device)[:, None].expand(places.shape[:2])
    place = (rows, *places.unbind(-1))
    found = items[place]
    return found.reshape([*indices.shape[:-1], *found.shape[2:]])


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    places = _wrapped(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    way = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return x.scatter_reduce(axis, places, updates, way)


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    if reduction not in ("none", "add"):
        raise NotImplementedError(f"reduction {reduction}")
    return x.index_put(indices.long().unbind(-1), updates, accumulate=reduction == "add")


def top_k(x: Tensor, k: Tensor | int, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """Of equal numbers the first comes first, which torch.topk leaves open."""
    values, places = x.sort(dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, int(k)), places.narrow(axis, 0, int(k))


def nonzero(x: Tensor) -> Tensor:
    return x.nonzero().T


def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    hot = F.one_hot(_wrapped(indices, int(depth)), int(depth)).bool()
    off, on = values.unbind()
    return torch.where(hot, on, off).movedim(-1, axis)


SHAPES: dict[str, Callable] = {
    "Shape": shape,
    "Size": size,
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Expand": expand,
    "Tile": tile,
    "Concat": concat,
    "Split": split,
    "Slice": cut,
    "Pad": pad,
    "ConstantOfShape": constant_of_shape,
    "Range": steps,
    "Trilu": triangle,
    "SpaceToDepth": space_to_depth,
    "DepthToSpace": depth_to_space,
    "Col2Im": fold,
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TopK": top_k,
    "NonZero": nonzero,
    "OneHot": one_hot,
}
