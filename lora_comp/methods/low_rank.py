"""Low-rank updates of linear layers, W + scale U diag(S) V^T: names, quantisation and merging.

An adapter is a set of such updates, pre-trained or generated from a seed.
"""

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_comp import ops
from lora_comp.codecs.codec import replace_parts
from lora_comp.codecs.swin import Stage
from lora_comp.entropy.models import round_ste
from lora_comp.errors import LoraCompError

ATTENTION, MLP = ("attn.qkv", "attn.proj"), ("mlp.fc1", "mlp.fc2")  # the linear layers of a Swin block
RANK, ALPHA = 4, 8  # of a seeded adapter
SEEDED = 0  # first byte of the identity of a seeded adapter; the other three hold rank, alpha, seed and mlp


@dataclass(frozen=True)
class Adapter:
    """Low-rank updates of named layers.

    `tensors` maps `LAYER.U`, `LAYER.S`, `LAYER.V` to float32 (out, r), (r,), (in, r), each optionally with a first
    dimension B of images; or `LAYER.weight` and `LAYER.bias` to what replaces a layer's own; and names of the codec's
    gain vectors to what replaces them.
    """

    tensors: Mapping[str, Tensor]
    scale: float
    identity: bytes  # four bytes that identify the adapter in a file
    card: Mapping[str, Any] = field(default_factory=dict)  # of its file

    @property
    def rank(self) -> int:
        return next(value.shape[-1] for key, value in self.tensors.items() if key.endswith(".S"))

    @property
    def layers(self) -> list[str]:
        return [key.removesuffix(".S") for key in self.tensors if key.endswith(".S")]

    @property
    def gains(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.tensors.items() if "." not in key}

    def expand(self, batch: int) -> "Adapter":
        """A separate copy for each image: (batch, out, r), (batch, r), (batch, in, r)."""
        own = {k: v.expand(batch, *v.shape) for k, v in self.tensors.items() if "." in k}
        return replace(self, tensors=own | self.gains)

    def folded(self) -> "Adapter":
        """The same update as plain LoRA: U diag(S) replaces U, and ones replace S."""
        tensors = dict(self.tensors)
        for name in self.layers:
            tensors[f"{name}.U"] = tensors[f"{name}.U"] * tensors[f"{name}.S"]
            tensors[f"{name}.S"] = torch.ones_like(tensors[f"{name}.S"])
        return replace(self, tensors=tensors, identity=identify(tensors))


def stages(codec: Any, side: str) -> list[str]:
    """Names of the stages of Swin blocks of one side, "g_a" or "g_s", in the order of the transform."""
    return [name for name, module in codec.get_submodule(side).named_modules(prefix=side) if isinstance(module, Stage)]


def layers(codec: Any, kinds: Sequence[str] = ATTENTION, within: Sequence[str] | None = None) -> dict[str, nn.Linear]:
    """Target layers by name: `kinds` of every Swin block of the stages `within`; None: of all of g_a and g_s."""
    chosen = [*stages(codec, "g_a"), *stages(codec, "g_s")] if within is None else within
    blocks = [f"{stage}.blocks.{i}" for stage in chosen for i in range(len(codec.get_submodule(stage).blocks))]
    return {name: codec.get_submodule(name) for block in blocks for name in [f"{block}.{kind}" for kind in kinds]}


def seeded(
    codec: Any, start: Mapping[str, float], rank: int = RANK, alpha: int = ALPHA, mlp: bool = False, seed: int = 0
) -> Adapter:
    """An adapter whose update is zero, with U and V of random signs and unit columns, identical on every machine.

    Args:
        start: constants for tensors that are not random, such as {"S": 0}.
    Raises:
        LoraCompError: a rank or alpha outside 1 to 255, a seed outside 0 to 127.
    """
    if not (1 <= rank <= 255 and 1 <= alpha <= 255 and 0 <= seed <= 127):
        raise LoraCompError("an adapter needs a rank and an alpha from 1 to 255 and a seed from 0 to 127")
    rng, tensors = np.random.Generator(np.random.PCG64(seed)), {}

    def signs(rows: int) -> Tensor:
        return torch.from_numpy((2 * rng.integers(0, 2, (rows, rank)) - 1).astype(np.float32) / np.float32(rows**0.5))

    for name, layer in layers(codec, ATTENTION + MLP if mlp else ATTENTION).items():
        made = {"U": signs(layer.out_features), "V": signs(layer.in_features), "S": torch.zeros(rank)}
        for key in "USV":
            tensors[f"{name}.{key}"] = torch.full_like(made[key], start[key]) if key in start else made[key]
    return Adapter(tensors, alpha / rank, bytes([SEEDED, rank, alpha, 2 * seed + mlp]))


def from_identity(codec: Any, start: Mapping[str, float], identity: bytes) -> Adapter | None:
    """The seeded adapter of this identity, or None if it is of a pre-trained one."""
    if identity[0] != SEEDED:
        return None
    return seeded(codec, start, identity[1], identity[2], bool(identity[3] & 1), identity[3] >> 1)


def identify(tensors: Mapping[str, Tensor]) -> bytes:
    """The identity of a pre-trained adapter: the first 4 bytes of the SHA-256 of its tensors, with the top bit set."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().float().numpy().tobytes())
    first = digest.digest()[:4]
    return bytes([first[0] | 0x80]) + first[1:]


class Quantised(nn.Module):
    """A transmitted tensor (B, ...), quantised as base + step * k with integer k.

    step: float32 (B,), one per image.
    """

    base: Tensor
    step: Tensor

    def __init__(self, base: Tensor):
        super().__init__()
        self.latent = nn.Parameter(base.clone())
        self.register_buffer("base", base.clone())
        self.register_buffer("step", base.new_ones(len(base)), persistent=False)

    def _step(self) -> Tensor:
        return self.step.view(-1, *(1 for _ in self.base.shape[1:]))

    def symbols(self) -> Tensor:
        """k, float32 (B, ...), rounded with straight-through gradients."""
        return round_ste((self.latent - self.base) / self._step())

    def value(self) -> Tensor:
        """The tensor as the decoder restores it."""
        return self.base + self._step() * self.symbols()

    @torch.no_grad()
    def place(self, k: Tensor) -> None:
        """Set the symbols k: (B, n)."""
        self.latent.copy_(self.base + self._step() * k.to(self.base).view_as(self.base))


class LowRankLinear(nn.Module):
    """A frozen linear layer with a low-rank update, computed by `codecs.swin.SwinBlock`.

    U, S, V: parameters (B, ...); those named in `transmitted` are `Quantised`.
    scale: a number; or (B, 1), one for each image, where all share U, S and V.
    """

    scale: float | Tensor

    def __init__(self, layer: nn.Linear, tensors: Mapping[str, Tensor], scale: float, transmitted: Iterable[str] = ()):
        super().__init__()
        self.layer, self.scale = layer, scale
        for name, value in tensors.items():
            value = value.to(layer.weight.device)
            setattr(self, name, Quantised(value) if name in transmitted else nn.Parameter(value.clone()))

    def value(self, name: str) -> Tensor:
        """U, S or V as the decoder restores it."""
        tensor = getattr(self, name)
        return tensor.value() if isinstance(tensor, Quantised) else tensor

    def as_layer(self) -> ops.Layer:
        u, s, v = map(self.value, "USV")
        s = self.scale * s
        if s.dim() == u.dim():
            u, v = (shared.expand(len(s), *shared.shape) for shared in (u, v))
        return ops.Layer(self.layer.weight, self.layer.bias, u, s, v)


def low_rank_layers(module: nn.Module) -> dict[str, LowRankLinear]:
    """The low-rank layers of a module by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LowRankLinear)}


def factors(module: nn.Module) -> dict[str, nn.Parameter]:
    """U, S and V of the low-rank layers of a module, none of them `Quantised`, as `Adapter.tensors` names them."""
    return {f"{name}.{k}": getattr(layer, k) for name, layer in low_rank_layers(module).items() for k in "USV"}


def insert(codec: Any, adapter: Adapter, side: str, transmitted: Iterable[str] = ()) -> None:
    """Replace the adapter's target layers of one side, "g_a" or "g_s", by `LowRankLinear`."""
    for name in adapter.layers:
        if name.startswith(f"{side}."):
            tensors = {k: adapter.tensors[f"{name}.{k}"] for k in "USV"}
            parent, child = name.rsplit(".", 1)
            layer = codec.get_submodule(name)
            setattr(codec.get_submodule(parent), child, LowRankLinear(layer, tensors, adapter.scale, transmitted))


def with_gains(codec: Any, adapter: Adapter, **modules: nn.Module) -> Any:
    """A copy of the codec with the adapter's gain vectors, if it has some, and other modules."""
    device = next(codec.parameters()).device
    gains = {k: nn.Parameter(v.to(device).clone(), requires_grad=False) for k, v in adapter.gains.items()}
    return replace_parts(codec, **modules, **gains)


def with_adapter(codec: Any, adapter: Adapter, transmitted: str = "") -> Any:
    """A copy of the codec with low-rank layers in g_a and g_s; all other modules are shared.

    transmitted: of U, S and V, those that are `Quantised` in g_s.
    """
    made = with_gains(codec, adapter, g_a=copy.deepcopy(codec.g_a), g_s=copy.deepcopy(codec.g_s))
    insert(made, adapter, "g_a")
    insert(made, adapter, "g_s", transmitted)
    return made.requires_grad_(False)


def merged(codec: Any, adapter: Adapter, sides: Sequence[str]) -> Any:
    """A copy of the codec with an adapter's updates, (out, r), (r,), (in, r) per layer, added to the weights of its
    target layers of `sides`, "g_a" and "g_s", or with what replaces them; all other modules are shared."""
    made = with_gains(codec, adapter, **{side: copy.deepcopy(codec.get_submodule(side)) for side in sides})
    for side in sides:
        merge(made, adapter, side)
    return made


@torch.no_grad()
def merge(codec: Any, adapter: Adapter, side: str) -> None:
    for name in [name for name in adapter.layers if name.startswith(f"{side}.")]:
        weight = codec.get_parameter(f"{name}.weight")
        u, s, v = (adapter.tensors[f"{name}.{k}"].to(weight.device) for k in "USV")
        weight.copy_(ops.merge(weight, u, s, v, adapter.scale))
    for name, value in adapter.tensors.items():
        if name.startswith(f"{side}.") and name.endswith((".weight", ".bias")):
            codec.get_parameter(name).copy_(value)
