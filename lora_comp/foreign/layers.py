"""Which tensors of an unknown network to match.

Two kinds tell most of what a network sees. Its *heads* are the last convolutions or matrix products before its outputs:
logits, which unlike what a sigmoid or softmax makes of them still have a slope where the network is sure. Its *stages*
are the last features at each of the coarsest resolutions, of which detectors and segmenters read several.
"""

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from lora_comp.foreign.taps import Probe

STAGES, HEADS = 4, 8  # at most
_PRODUCTS = ("Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Linear")  # autograd's names of what has weights


def usable(probe: Probe) -> dict[str, Tensor]:
    """The tensors that can be matched: of the one image (1, ...), with a gradient, their numbers not all the same."""
    return {
        name: t
        for name, t in probe.tensors.items()
        if t.requires_grad
        and t.ndim > 1
        and len(t) == 1
        and t.numel() > 1
        and torch.isfinite(t).all()
        and t.detach().float().var() > 1e-20
    }


def pick(probe: Probe, size: tuple[int, int]) -> list[str]:
    """Names of the tensors to match, in order of computation; `size` (H, W) is that of the image of the probe."""
    found = usable(probe)
    heads, after = _heads(probe, found)
    inner = {name: tensor for name, tensor in found.items() if tensor.grad_fn not in after and name not in heads}
    stages = _resolutions(inner, size)
    if len(stages) < 2 or (len(stages) == 2 and _is_transformer(inner)):  # of its patches, and of their attention
        stages = _evenly(inner)
    return [name for name in found if name in heads or name in stages]


def _heads(probe: Probe, found: Mapping[str, Tensor]) -> tuple[set[str], set]:
    """The heads, and autograd's functions after them. Of a network whose outputs add up what many layers make, as a
    transformer's without a head, the outputs themselves are the heads."""
    names = {tensor.grad_fn: name for name, tensor in found.items()}
    ends = [(probe.tensors[name].grad_fn, "") for name in probe.outputs]
    heads, seen = set[str](), set()
    while ends:
        function, last = ends.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        last = names.get(function, last)
        if function.name().startswith(_PRODUCTS):
            heads.add(last)
        else:
            ends += [(before, last) for before, _ in function.next_functions]
    heads.discard("")
    if not 1 <= len(heads) <= HEADS:
        return {name for name in probe.outputs if name in found}, set()
    return heads, {function for function in seen if names.get(function) not in heads}


def _resolutions(inner: Mapping[str, Tensor], size: tuple[int, int]) -> set[str]:
    """The last tensors at each of the coarsest octaves of resolution, from a quarter of the image's on. What has the
    shape of an attention map, whose rows each sum to 1, is none."""
    maps = {name: tensor for name, tensor in inner.items() if tensor.ndim == 4}
    attention = {tensor.shape for tensor in maps.values() if (tensor.detach().sum(-1) - 1).abs().max() < 1e-3}
    last: dict[int, str] = {}
    for name, tensor in maps.items():
        if tensor.shape in attention:
            continue
        for rows, columns in (tensor.shape[2:], tensor.shape[1:3]):  # channels first or last
            octave = round(math.log2(size[0] / rows))
            if octave >= 2 and min(rows, columns) > 1 and abs(columns - rows * size[1] / size[0]) <= 2:
                last[octave] = name
    return {last[octave] for octave in sorted(last)[-STAGES:]}


def _sums(inner: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in inner.items()
        if tensor.grad_fn is not None and tensor.grad_fn.name().startswith("Add")
    }


def _is_transformer(inner: Mapping[str, Tensor]) -> bool:
    """Whether it adds up tokens, (1, N, C)."""
    return sum(tensor.ndim == 3 for tensor in _sums(inner).values()) >= STAGES


def _evenly(inner: Mapping[str, Tensor]) -> set[str]:
    """Of a network of one resolution, such as a ViT: evenly spaced ones of the commonest shape, of its sums if it adds
    up."""
    sums = _sums(inner)
    shapes = Counter(tensor.shape for tensor in sums.values() if tensor.numel() > 64)
    if not shapes or max(shapes.values()) < STAGES:
        sums, shapes = dict(inner), Counter(tensor.shape for tensor in inner.values())
    if not shapes:
        return set()
    ((shape, _),) = shapes.most_common(1)
    alike = [name for name, tensor in sums.items() if tensor.shape == shape]
    return {alike[math.ceil(len(alike) * quarter / STAGES) - 1] for quarter in range(1, STAGES + 1)}
