"""The finder of stages: which tensors of a network to compare, whatever task asks.

*Stages* are the last features at each of the coarsest resolutions. A library may list them (timm does); otherwise they
are found in one forward pass. *Heads* are the last convolutions or matrix products before the outputs: logits, which
unlike what a sigmoid or softmax makes of them still have a slope where the network is sure. The heads of a classifier
are not compared, as in the published loss: most are linear in features that are (docs/open.md).
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from lora_comp.networks.taps import Probe

STAGES, HEADS = 4, 8  # at most
_PRODUCTS = ("Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Linear")  # autograd's names of what has weights

Tensors = Mapping[str, Tensor]


def usable(probe: Probe) -> dict[str, Tensor]:
    """The tensors that can be compared: of the one image (1, ...), with a gradient, not constant."""
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


def find_stages(probe: Probe, size: tuple[int, int], listed: Sequence[str] = (), classifier: bool = False) -> list[str]:
    """Names of the tensors to compare, in order of computation.

    size: (H, W) of the image of the probe. listed: stages that the network's library lists; used if they can be.
    classifier: leave the heads out, and take care that the last stage is what the heads read.
    """
    tensors = usable(probe)
    heads, after = _heads(probe, tensors)
    inner = {name: t for name, t in tensors.items() if t.grad_fn not in after and name not in heads}
    given = _given(probe, listed)
    fits = given and all(name in tensors and _is_spread(tensors[name]) for name in given)
    stages = list(given) if fits else _search(inner, size)
    if not classifier:
        return [name for name in tensors if name in heads or name in stages]
    headless = not inner.keys() >= set(stages)  # its last products are inside of the last stage
    read = [] if headless else _read_by(heads, tensors, inner)
    missing = [name for name in read if _has_weights(inner, name, stages)]
    if missing:
        last = [name for name in read if name in missing or name in stages]
        stages = [name for name in stages if name not in last][: max(STAGES - len(last), 1)] + last
    return [given.get(name, name) for name in tensors if name in stages]


def _given(probe: Probe, listed: Sequence[str]) -> dict[str, str]:
    """Name of the tensor -> name of the submodule, of the listed submodules; of a list of submodules, its last."""
    given = {}
    for name in listed:
        inside = [alias for alias in probe.aliases if re.fullmatch(rf"{re.escape(name)}\.\d+", alias)]
        module = name if name in probe.aliases or not inside else inside[-1]
        given[probe.aliases.get(module, module)] = module
    return given


def _heads(probe: Probe, tensors: Tensors) -> tuple[set[str], set]:
    """The heads, and autograd's functions after them. Of a network whose outputs add up what many layers compute, such
    as a transformer without a head, the outputs themselves are the heads."""
    names = {tensor.grad_fn: name for name, tensor in tensors.items()}
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
        return {name for name in probe.outputs if name in tensors}, set()
    return heads, {function for function in seen if names.get(function) not in heads}


def _search(inner: Tensors, size: tuple[int, int]) -> list[str]:
    """The last tensors at each resolution; of a network of one resolution, evenly spaced ones. What the network's outer
    submodules return comes before what is inside of them, if it shows as many resolutions."""
    outer = {name: tensor for name, tensor in inner.items() if name.count(".") < 2}
    stages = _resolutions(inner, size)
    if len(stages) < 2 or (len(stages) == 2 and _is_transformer(inner)):  # of its patches, and of their attention
        return _evenly(inner)
    outer_stages = _resolutions(outer, size)
    return outer_stages if len(outer_stages) == len(stages) else stages


def _resolutions(inner: Tensors, size: tuple[int, int]) -> list[str]:
    """The last tensors at each of the coarsest octaves of resolution, from a quarter of the image's on. Tensors of the
    shape of an attention map, whose rows each sum to 1, do not count."""
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
    return [name for name in inner if name in {last[octave] for octave in sorted(last)[-STAGES:]}]


def _sums(inner: Tensors) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in inner.items()
        if tensor.grad_fn is not None and tensor.grad_fn.name().startswith("Add")
    }


def _is_transformer(inner: Tensors) -> bool:
    """Whether it adds up tokens, (1, N, C)."""
    return sum(tensor.ndim == 3 for tensor in _sums(inner).values()) >= STAGES


def _evenly(inner: Tensors) -> list[str]:
    """Of a network of one resolution, such as a ViT: evenly spaced tensors of the commonest shape, among its sums if it
    has residual connections."""
    sums = _sums(inner)
    shapes = Counter(tensor.shape for tensor in sums.values() if tensor.numel() > 64)
    if not shapes or max(shapes.values()) < STAGES:
        sums, shapes = dict(inner), Counter(tensor.shape for tensor in inner.values())
    if not shapes:
        return []
    ((shape, _),) = shapes.most_common(1)
    alike = [name for name, tensor in sums.items() if tensor.shape == shape]
    return list(dict.fromkeys(alike[math.ceil(len(alike) * quarter / STAGES) - 1] for quarter in range(1, STAGES + 1)))


def _is_spread(tensor: Tensor) -> bool:
    """Whether it is a map, (1, C, H, W) or (1, H, W, C), or tokens, (1, N, C), of more than one position."""
    return tensor.ndim > 2 and min(tensor.shape[1:3]) > 1


def _read_by(heads: Collection[str], tensors: Tensors, inner: Tensors) -> list[str]:
    """The last tensors before the heads, in order of computation, that are still spread over the image: what lies
    between, such as pooling, belongs to the heads."""
    spread = {tensor.grad_fn: name for name, tensor in inner.items() if _is_spread(tensor)}
    functions, seen, read = [tensors[name].grad_fn for name in heads], set(), set[str]()
    while functions:
        function = functions.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if function in spread:
            read.add(spread[function])
        else:
            functions += [before for before, _ in function.next_functions]
    return [name for name in inner if name in read]


def _has_weights(inner: Tensors, name: str, stages: Collection[str]) -> bool:
    """Whether a convolution or matrix product lies between a tensor and the stages before it."""
    stops = {inner[stage].grad_fn for stage in stages}
    functions, seen = [inner[name].grad_fn], set()
    while functions:
        function = functions.pop()
        if function is None or function in stops or function in seen:
            continue
        seen.add(function)
        if function.name().startswith(_PRODUCTS):
            return True
        functions += [before for before, _ in function.next_functions]
    return False
