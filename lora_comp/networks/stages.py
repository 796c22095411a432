"""The finder of stages: which tensors of a network to compare, whatever task asks.

*Stages* are the last features at each of the coarsest resolutions. A library may list them (timm does); otherwise they
are found in one forward pass, among the cuts of the network (`paths.py`): what lies inside of a residual branch, such
as an attention map, says little of what the network goes on with. *Heads* are the last convolutions or matrix products
before the outputs: logits, which unlike what a sigmoid or softmax makes of them still have a slope where the network is
sure. The heads of a classifier are not compared, as in the published loss: most are linear in features that are
(docs/open.md).
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from lora_comp.networks.paths import Cuts, ancestors, is_product
from lora_comp.networks.taps import Probe

STAGES, HEADS = 4, 8  # at most
WIDEST = 4  # branches that run side by side
GAP = 0.5  # of all products, between one cut and the next: if more, the cuts miss what the network does
CLASS_TOKENS = 9  # that may lie among those of patches, at most

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
        and t.detach().float().var() > 1e-12 * t.detach().float().square().mean()
    }


def find_stages(probe: Probe, size: tuple[int, int], listed: Sequence[str] = (), classifier: bool = False) -> list[str]:
    """Names of the tensors to compare, in order of computation.

    size: (H, W) of the image of the probe. listed: stages that the network's library lists; used if they can be.
    classifier: leave the heads out, and take care that the last stage is what the heads read.
    """
    tensors = usable(probe)
    heads, after = _heads(probe, tensors)
    inner = {name: t for name, t in tensors.items() if t.grad_fn not in after and name not in heads}
    ends = {probe.tensors[name].grad_fn for name in heads}
    stages = _listed(probe, listed, tensors, ends) or _search(inner, ends, size, _levels(probe, inner))
    found = {name for stage in stages for name in stage}
    if classifier and inner.keys() >= found:  # else its last products are inside of the last stage
        stages = _completed(stages, _read_by(ends, inner), inner)
        found = {name for stage in stages for name in stage}
    given = {tensor: name for name in listed for tensor in probe.parts(name) if name in probe.aliases}
    kept = found if classifier else found | heads
    return [given.get(name, name) for name in tensors if name in kept]


def _listed(probe: Probe, listed: Sequence[str], tensors: Tensors, ends: Collection) -> list[list[str]]:
    """The tensors of each listed submodule that the heads depend on; none if there is a submodule without any that is
    spread over the image."""
    used = ancestors(ends)
    stages = [[n for n in probe.parts(name) if n in tensors and tensors[n].grad_fn in used] for name in listed]
    return stages if all(any(_is_spread(tensors[name]) for name in stage) for stage in stages) else []


def _heads(probe: Probe, tensors: Tensors) -> tuple[set[str], set]:
    """The heads, and autograd's functions after them. Of a network whose outputs add up what many layers compute, such
    as a transformer without a head, the outputs themselves are the heads."""
    names = {tensor.grad_fn: name for name, tensor in probe.tensors.items()}
    outputs = [probe.tensors[name] for name in probe.outputs]
    if not all(tensor.requires_grad for tensor in outputs):  # such as the indices of boxes that are kept
        outputs += _unread(tensors)
    ends: list[tuple[Any, str]] = [(tensor.grad_fn, "") for tensor in outputs]
    heads, seen = set[str](), set()
    while ends:
        function, last = ends.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        last = names.get(function, last)
        if is_product(function):
            heads.add(last)
        else:
            ends += [(before, last) for before, _ in function.next_functions]
    heads.discard("")
    if not 1 <= len(heads) <= HEADS:
        return {name for name in probe.outputs if probe.tensors[name].requires_grad}, set()
    return heads, {function for function in seen if names.get(function) not in heads}


def _unread(tensors: Tensors) -> list[Tensor]:
    """Those that no other is computed from: what an operator without a gradient reads, such as the boxes and scores of
    a suppression."""
    read = {
        before for tensor in tensors.values() for f in ancestors([tensor.grad_fn]) for before, _ in f.next_functions
    }
    return [tensor for tensor in tensors.values() if tensor.grad_fn not in read]


def _levels(probe: Probe, inner: Tensors) -> dict[str, int]:
    """How many submodules that return a tensor enclose each tensor."""
    returning = {alias.partition(":")[0] for alias, name in probe.aliases.items() if name in inner}
    prefixes = {name: list(accumulate(name.split("."), "{}.{}".format))[:-1] for name in inner}
    return {name: sum(outer in returning for outer in prefixes[name]) for name in inner}


def _search(inner: Tensors, ends: Collection, size: tuple[int, int], levels: Mapping[str, int]) -> list[list[str]]:
    """The last cuts at each resolution, or evenly spaced ones of a network of one resolution. Of a network that has
    none for most of its depth, such as one with a feature pyramid, the last tensors at each resolution."""
    cuts = Cuts(inner, ends)
    chain = [cut for cut in cuts.find(1) if _is_spread(inner[cut[0]])]
    if _is_dense(chain, cuts, inner):
        return _along(chain, cuts, inner, size, levels)
    depths = {name: name.count(".") for name in inner}
    stages = _resolutions({name: tensor for name, tensor in inner.items() if tensor.ndim == 4}, size, depths)
    if len(stages) >= STAGES - 1:
        return [[name] for name in stages]
    for width in range(2, WIDEST + 1):
        branches = [cut for cut in cuts.find(width) if any(_is_spread(inner[name]) for name in cut)]
        if _is_dense(branches, cuts, inner):
            return _spaced(branches)
    return [[name] for name in _evenly(inner)]


def _is_dense(found: Sequence[Sequence[str]], cuts: Cuts, inner: Tensors) -> bool:
    """Whether cuts follow each other through all of the network."""
    depths = [0.0, *(cuts.depth(cut, inner) for cut in found), 1.0]
    return all(after - before <= GAP for before, after in pairwise(depths))


def _along(
    chain: Sequence[Sequence[str]], cuts: Cuts, inner: Tensors, size: tuple[int, int], levels: Mapping[str, int]
) -> list[list[str]]:
    """The last cuts of one tensor at each resolution; or, if most of the network works at one, evenly spaced ones."""
    tensors = {name: inner[name] for cut in chain for name in cut}
    stages = _resolutions(tensors, size, levels)
    depths = [0.0, *(cuts.depth([name], inner) for name in stages)]
    if len(stages) > 1 and all(b - a < 3 / 4 for a, b in pairwise(depths)):
        return [[name] for name in stages]
    last = next(reversed(tensors))
    blocks = _blocks(tensors) or list(_sums(tensors)) or list(tensors)
    spaced = _spaced([[name] for name in blocks])
    products = ancestors([tensors[last].grad_fn], {tensors[spaced[-1][0]].grad_fn})
    return [*spaced[:-1], [last]] if any(map(is_product, products)) else spaced


def _blocks(tensors: Tensors) -> list[str]:
    """What the outermost blocks of a row return, blocks.0 to blocks.11; none if there is no row of four."""
    rows = Counter(name.rpartition(".")[0] for name in tensors if re.search(r"\.\d+(:\d+)?$", name))
    long = [row for row, count in rows.items() if count >= STAGES and row]
    if not long:
        return []
    row = min(long, key=lambda row: (row.count("."), -rows[row]))
    return [name for name in tensors if name.rpartition(".")[0] == row]


def _spaced(found: Sequence[Sequence[str]]) -> list[list[str]]:
    """Four of them, evenly spaced, with the last."""
    places = dict.fromkeys(math.ceil(len(found) * quarter / STAGES) - 1 for quarter in range(1, STAGES + 1))
    return [list(found[place]) for place in places if place >= 0]


def _resolutions(tensors: Tensors, size: tuple[int, int], levels: Mapping[str, int]) -> list[str]:
    """The last tensors at each of the coarsest octaves of resolution, from a quarter of the image's on. What outer
    submodules return comes before what is inside of them, if it shows as many."""
    last = _octaves(tensors, size)
    for level in sorted({levels[name] for name in tensors}):
        outer = _octaves({name: tensor for name, tensor in tensors.items() if levels[name] <= level}, size)
        if len(outer) == len(last):
            last = outer
            break
    return [name for name in tensors if name in {last[octave] for octave in sorted(last)[-STAGES:]}]


def _octaves(tensors: Tensors, size: tuple[int, int]) -> dict[int, str]:
    """The last tensor at each octave of resolution. Tensors of the shape of an attention map, whose rows each sum to 1,
    do not count."""
    maps = [tensor for tensor in tensors.values() if tensor.ndim == 4]
    attention = {tensor.shape for tensor in maps if (tensor.detach().sum(-1) - 1).abs().max() < 1e-3}
    last: dict[int, str] = {}
    for name, tensor in tensors.items():
        if tensor.shape in attention:
            continue
        for rows, columns in _grids(tensor, size):
            octave = round(math.log2(size[0] / rows))
            if octave >= 2 and min(rows, columns) > 1 and abs(columns - rows * size[1] / size[0]) <= 2:
                last[octave] = name
    return last


def _grids(tensor: Tensor, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The rows and columns that a tensor may have: of a map, channels first or last, or of tokens of patches, with
    class tokens beside them."""
    if tensor.ndim == 4:
        return [tuple(tensor.shape[2:]), tuple(tensor.shape[1:3])]  # type: ignore[list-item]
    if tensor.ndim != 3:
        return []
    for count in tensor.shape[1:]:
        for patches in range(count, max(count - CLASS_TOKENS, 3), -1):
            rows = round(math.sqrt(patches * size[0] / size[1]))
            if rows and patches % rows == 0 and abs(patches // rows - rows * size[1] / size[0]) < 1:
                return [(rows, patches // rows)]
    return []


def _sums(inner: Tensors) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in inner.items()
        if tensor.grad_fn is not None and tensor.grad_fn.name().startswith("Add")
    }


def _evenly(inner: Tensors) -> list[str]:
    """Evenly spaced tensors of the commonest shape, among the sums if there are residual connections."""
    sums = _sums(inner)
    shapes = Counter(tensor.shape for tensor in sums.values() if tensor.numel() > 64)
    if not shapes or max(shapes.values()) < STAGES:
        sums, shapes = dict(inner), Counter(tensor.shape for tensor in inner.values())
    if not shapes:
        return []
    ((shape, _),) = shapes.most_common(1)
    return [name for (name,) in _spaced([[name] for name, tensor in sums.items() if tensor.shape == shape])]


def _is_spread(tensor: Tensor) -> bool:
    """Whether it is a map, (1, C, H, W) or (1, H, W, C), or tokens, (1, N, C), of more than one position."""
    return tensor.ndim > 2 and min(tensor.shape[1:3]) > 1


def _read_by(ends: Collection, inner: Tensors) -> list[str]:
    """The last tensors before the heads, in order of computation, that are still spread over the image: what lies
    between, such as pooling, belongs to the heads."""
    spread = {tensor.grad_fn: name for name, tensor in inner.items() if _is_spread(tensor)}
    read = {spread[function] for function in ancestors(ends, spread.keys()) if function in spread}
    return [name for name in inner if name in read]


def _completed(stages: list[list[str]], read: Sequence[str], inner: Tensors) -> list[list[str]]:
    """The stages; if convolutions or matrix products lie between them and what the heads read, that takes the place of
    the last."""
    found = {name for stage in stages for name in stage}
    seen = ancestors(inner[name].grad_fn for name in found)
    lacking = [name for name in read if any(map(is_product, ancestors([inner[name].grad_fn]) - seen))]
    if not lacking:
        return stages
    last = [name for name in read if name in lacking or name in found]
    before = [[name for name in stage if name not in last] for stage in stages]
    return [stage for stage in before if stage][: max(STAGES - len(last), 1)] + [[name] for name in last]
