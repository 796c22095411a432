"""Low-rank updates of linear layers: W + (alpha / r) U diag(S) V^T, how they are named, stored, quantised and merged.

An adapter is what is added to a codec before any image is seen: pre-trained, or made from a seed.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_comp import ops
from lora_comp.codecs.swin import SwinBlock
from lora_comp.entropy.models import round_ste
from lora_comp.errors import LoraCompError
from lora_comp.weights import read_weights

SEEDED = 0  # first byte of the identity of an adapter made from a seed; the other three hold rank, alpha and seed


@dataclass(frozen=True)
class Adapter:
    """Low-rank updates of named layers.

    `tensors` maps `LAYER.U`, `LAYER.S`, `LAYER.V` to float32 (out, r), (r,), (in, r), or each of these with a first
    dimension of the images that have their own.
    """

    tensors: Mapping[str, Tensor]
    rank: int
    alpha: float
    identity: bytes  # four bytes by which a file names its adapter

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def layers(self) -> list[str]:
        return [key.removesuffix(".S") for key in self.tensors if key.endswith(".S")]

    def of_each(self, images: int) -> "Adapter":
        """A copy for each image: (images, out, r), (images, r), (images, in, r)."""
        return replace(self, tensors={k: v.expand(images, *v.shape) for k, v in self.tensors.items()})

    def folded(self) -> "Adapter":
        """The same update in the form of plain LoRA: U diag(S) in place of U, and ones in place of S."""
        tensors = dict(self.tensors)
        for name in self.layers:
            tensors[f"{name}.U"] = tensors[f"{name}.U"] * tensors[f"{name}.S"]
            tensors[f"{name}.S"] = torch.ones_like(tensors[f"{name}.S"])
        return replace(self, tensors=tensors, identity=identify(tensors))


def layers(codec: Any, mlp: bool = False) -> dict[str, nn.Linear]:
    """The target layers by name: qkv and proj of every Swin block of g_a and g_s, and with `mlp` fc1 and fc2."""
    found = {}
    for side in ("g_a", "g_s"):
        for name, block in codec.get_submodule(side).named_modules(prefix=side):
            if isinstance(block, SwinBlock):
                found[f"{name}.attn.qkv"], found[f"{name}.attn.proj"] = block.attn.qkv, block.attn.proj
                if mlp:
                    found[f"{name}.mlp.fc1"], found[f"{name}.mlp.fc2"] = block.mlp.fc1, block.mlp.fc2
    return found


def seeded(
    codec: Any, start: Mapping[str, float], rank: int = 4, alpha: int = 8, mlp: bool = False, seed: int = 0
) -> Adapter:
    """An adapter that changes nothing yet: columns of random signs of unit length, the same on every machine.

    Args:
        start: constant values of the tensors that are not random, as {"S": 0}.
    Raises:
        LoraCompError: a rank or alpha outside 1 to 255, a seed outside 0 to 127.
    """
    if not (1 <= rank <= 255 and 1 <= alpha <= 255 and 0 <= seed <= 127):
        raise LoraCompError("an adapter needs a rank and an alpha from 1 to 255 and a seed from 0 to 127")
    rng, tensors = np.random.Generator(np.random.PCG64(seed)), {}

    def signs(rows: int) -> Tensor:
        return torch.from_numpy((2 * rng.integers(0, 2, (rows, rank)) - 1).astype(np.float32) / np.float32(rows**0.5))

    for name, layer in layers(codec, mlp).items():
        made = {"U": signs(layer.out_features), "V": signs(layer.in_features), "S": torch.zeros(rank)}
        for key in "USV":
            tensors[f"{name}.{key}"] = torch.full_like(made[key], start[key]) if key in start else made[key]
    return Adapter(tensors, rank, alpha, bytes([SEEDED, rank, alpha, 2 * seed + mlp]))


def from_identity(codec: Any, start: Mapping[str, float], identity: bytes) -> Adapter | None:
    """The seeded adapter that a file names, or None where it names a pre-trained one."""
    if identity[0] != SEEDED:
        return None
    return seeded(codec, start, identity[1], identity[2], bool(identity[3] & 1), identity[3] >> 1)


def identify(tensors: Mapping[str, Tensor]) -> bytes:
    """The four bytes that name a pre-trained adapter: the start of the SHA-256 of its tensors, never `SEEDED`."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().float().numpy().tobytes())
    first = digest.digest()[:4]
    return bytes([first[0] | 0x80]) + first[1:]


def read_adapter(path: Path, codec: Any) -> Adapter | None:
    """A pre-trained adapter, or None where it was made for another codec."""
    tensors, card = read_weights(path, "the adapter")
    made_for = card.get("codec"), card.get("quality"), card.get("codec_hash")
    if made_for != (codec.name, codec.quality, codec.hash.hex()):
        return None
    return Adapter(tensors, card["rank"], card["alpha"], identify(tensors))


def load_adapter(path: Path, codec: Any) -> Adapter:
    """The same. Raises LoraCompError where it was made for another codec."""
    found = read_adapter(path, codec)
    if found is None:
        raise LoraCompError(
            f"{path} was trained for other weights of {codec.name} quality {codec.quality:g} than are here"
        )
    return found


class Quantised(nn.Module):
    """A tensor (B, ...) that is transmitted: its decoder has base + step k, with k integer.

    step: float32 (B,), of each image.
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
        """k, rounded with straight-through gradients."""
        return round_ste((self.latent - self.base) / self._step())

    def value(self) -> Tensor:
        return self.base + self._step() * self.symbols()

    @torch.no_grad()
    def place(self, k: Tensor) -> None:
        """Set the symbols, (B, n)."""
        self.latent.copy_(self.base + self._step() * k.to(self.base).view_as(self.base))


class LowRankLinear(nn.Module):
    """A frozen linear layer with its update, for a `codecs.swin.SwinBlock` to compute.

    U, S, V: parameters (B, ...), those named in `transmitted` as `Quantised`.
    """

    def __init__(self, layer: nn.Linear, tensors: Mapping[str, Tensor], scale: float, transmitted: Iterable[str] = ()):
        super().__init__()
        self.layer, self.scale = layer, scale
        for name, value in tensors.items():
            value = value.to(layer.weight.device)
            setattr(self, name, Quantised(value) if name in transmitted else nn.Parameter(value.clone()))

    def value(self, name: str) -> Tensor:
        """U, S or V as the decoder has it."""
        tensor = getattr(self, name)
        return tensor.value() if isinstance(tensor, Quantised) else tensor

    def as_layer(self) -> ops.Layer:
        u, s, v = map(self.value, "USV")
        return ops.Layer(self.layer.weight, self.layer.bias, u, self.scale * s, v)


def insert(codec: Any, adapter: Adapter, side: str, transmitted: Iterable[str] = ()) -> None:
    """Put the adapter's layers of one side, "g_a" or "g_s", in place of the codec's own."""
    for name in adapter.layers:
        if name.startswith(f"{side}."):
            tensors = {k: adapter.tensors[f"{name}.{k}"] for k in "USV"}
            parent, child = name.rsplit(".", 1)
            layer = codec.get_submodule(name)
            setattr(codec.get_submodule(parent), child, LowRankLinear(layer, tensors, adapter.scale, transmitted))


@torch.no_grad()
def merge(codec: Any, adapter: Adapter) -> None:
    """Add the adapter's updates, (out, r), (r,), (in, r) a layer, to the weights of the layers that it names."""
    for name in adapter.layers:
        weight = codec.get_parameter(f"{name}.weight")
        u, s, v = (adapter.tensors[f"{name}.{k}"].to(weight.device) for k in "USV")
        weight.copy_(ops.merge(weight, u, s, v, adapter.scale))
