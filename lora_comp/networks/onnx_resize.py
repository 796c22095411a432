"""ONNX's operator Resize, in all its versions, and Upsample, which came before it.

Each axis is resized by itself: an output number is a weighted sum of the neighbours of its place in the input.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

INTERPOLATED = {"linear": "bilinear", "cubic": "bicubic"}  # ONNX's mode -> torch's, of two axes


def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    if scales is None and sizes is None:  # version 10, whose second input is the scales
        return upsample(x, roi, mode=mode)
    over = [axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)]
    before = [x.shape[axis] for axis in over]
    factors, after = _scaled(before, scales, sizes, keep_aspect_ratio_policy)
    crops = [(0.0, 1.0)] * len(over)
    if coordinate_transformation_mode == "tf_crop_and_resize" and roi is not None:
        crops = [*zip(*roi.reshape(2, -1).tolist(), strict=True)]
    moved = [i for i in range(len(over)) if factors[i] != 1 or after[i] != before[i] or crops[i] != (0, 1)]
    if mode in INTERPOLATED and x.ndim == 4 and [over[i] for i in moved] == [2, 3]:
        ways = {"half_pixel", "align_corners"} | ({"pytorch_half_pixel"} if min(after) > 1 else set())
        special = exclude_outside or cubic_coeff_a != -0.75 or (antialias and min(factors) < 1)
        whole = all(math.isclose(after[i], before[i] * factors[i], abs_tol=1e-4) for i in moved)
        if coordinate_transformation_mode in ways and whole and not special:  # torch does it in one step
            corners = coordinate_transformation_mode == "align_corners"
            return F.interpolate(x, [after[i] for i in moved], mode=INTERPOLATED[mode], align_corners=corners)
    for i in moved:
        at = _places(coordinate_transformation_mode, before[i], after[i], factors[i], crops[i])
        if mode == "nearest":
            resized = x.index_select(over[i], _nearest(at, nearest_mode).clamp(0, before[i] - 1).to(x.device))
        else:
            shrunk = min(factors[i], 1.0) if antialias else 1.0
            weights = _weights(at, before[i], mode, cubic_coeff_a, shrunk, bool(exclude_outside))
            resized = (x.movedim(over[i], -1) @ weights.to(x).T).movedim(-1, over[i])
        if coordinate_transformation_mode == "tf_crop_and_resize":
            beyond = ((at < 0) | (at > before[i] - 1)).reshape([-1] + [1] * (x.ndim - 1 - over[i]))
            resized = torch.where(beyond.to(x.device), extrapolation_value, resized)
        x = resized
    return x


def upsample(
    x: Tensor, scales: Tensor | Sequence[float] | None = None, *, mode: str = "nearest", **sides: float
) -> Tensor:
    """Also Resize of version 10. sides: height_scale and width_scale, of Upsample's first version."""
    factors = torch.tensor([1, 1, sides["height_scale"], sides["width_scale"]]) if scales is None else scales
    return resize(
        x,
        scales=torch.as_tensor(factors),
        mode={"bilinear": "linear"}.get(mode, mode),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _scaled(
    before: Sequence[int], scales: Tensor | None, sizes: Tensor | None, policy: str
) -> tuple[list[float], list[int]]:
    """The factor of each axis, and its length after it."""
    if sizes is None or not sizes.numel():
        factors = scales.tolist() if scales is not None else []
        return factors, [math.floor(length * factor) for length, factor in zip(before, factors, strict=True)]
    after = [int(length) for length in sizes.tolist()]
    factors = [wanted / length for wanted, length in zip(after, before, strict=True)]
    if policy != "stretch":
        factors = [min(factors) if policy == "not_larger" else max(factors)] * len(factors)
        after = [math.floor(length * factor + 0.5) for length, factor in zip(before, factors, strict=True)]
    return factors, after


def _places(way: str, before: int, after: int, factor: float, crop: tuple[float, float]) -> Tensor:
    """The place in the input of each number of the output: (after,)."""
    out = torch.arange(after, dtype=torch.float64)
    if way == "align_corners":
        return out * (before - 1) / max(after - 1, 1)
    if way == "asymmetric":
        return out / factor
    if way == "tf_half_pixel_for_nn":
        return (out + 0.5) / factor
    if way == "tf_crop_and_resize":
        start, end = crop
        if after == 1:
            return (out + 0.5) * (start + end) * (before - 1)
        return start * (before - 1) + out * (end - start) * (before - 1) / (after - 1)
    if way == "pytorch_half_pixel" and after == 1:
        return out
    if way == "half_pixel_symmetric":
        return before / 2 * (1 - after / (factor * before)) + (out + 0.5) / factor - 0.5
    return (out + 0.5) / factor - 0.5


def _nearest(at: Tensor, way: str) -> Tensor:
    at = (at * 2**20).round() / 2**20  # a place computed to be a whole number or a half is one
    rounding: dict[str, Callable[[Tensor], Tensor]] = {
        "floor": torch.floor,
        "ceil": torch.ceil,
        "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
        "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    }
    return rounding[way](at).long()


def _weights(at: Tensor, length: int, mode: str, a: float, shrunk: float, inside: bool) -> Tensor:
    """The weights of an axis: (places, length). inside: neighbours beyond the ends do not count; else the ends repeat.
    shrunk: the kernel is stretched by its inverse (antialiasing)."""
    reach = math.ceil((1 if mode == "linear" else 2) / shrunk)
    near = at.floor()[:, None] + torch.arange(1 - reach, reach + 1)
    weights = _kernel((at[:, None] - near).abs() * shrunk, mode, a)
    if inside:
        weights = weights * ((near >= 0) & (near < length))
    weights = weights / weights.sum(1, keepdim=True)
    return torch.zeros(len(at), length, dtype=at.dtype).scatter_add(1, near.clamp(0, length - 1).long(), weights)


def _kernel(t: Tensor, mode: str, a: float) -> Tensor:
    """Of distances: linear, or Keys's cubic convolution (1981) with its parameter a."""
    if mode == "linear":
        return (1 - t).clamp_min(0)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))
