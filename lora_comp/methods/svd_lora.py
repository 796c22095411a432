"""SVD-LoRA test-time fine-tuning, and plain LoRA beside it.

"Test-Time Fine-Tuning of Image Compression Models for Multi-Task Adaptability", CVPR 2025: every attention layer W of
g_a and g_s becomes W + (alpha / r) U diag(S) V^T (`ops.svd_lora`). Before shipping all of U, S and V are trained for a
task. For each image the encoder trains all of its own and only S of the decoder; the file carries the decoder's
change of S. Plain LoRA (Hu et al., ICLR 2022) keeps S at 1, and its U and V travel.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lora_comp import ops
from lora_comp.codecs import Codec
from lora_comp.codecs.swin import SwinBlock
from lora_comp.entropy import deltas
from lora_comp.entropy.models import round_ste
from lora_comp.errors import BitstreamError, LoraCompError

REACH = 2  # steps that a value is moved at most, but for a move to 0
SEEDED = 0  # first byte of the identity of an adapter that is made from a seed; the other three tell how


@dataclass(frozen=True)
class Adapter:
    """What is added to a codec before any image is seen: pre-trained, or made from a seed.

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

    def of_each(self, images: int) -> "Adapter":
        """The same for each of so many images: (images, out, r), (images, r), (images, in, r)."""
        return replace(self, tensors={k: v.expand(images, *v.shape) for k, v in self.tensors.items()})

    def folded(self) -> "Adapter":
        """The same pre-trained update as plain LoRA has it: U diag(S) in place of U, and ones in place of S."""
        tensors = dict(self.tensors)
        for name in [key.removesuffix(".S") for key in tensors if key.endswith(".S")]:
            tensors[f"{name}.U"] = tensors[f"{name}.U"] * tensors[f"{name}.S"]
            tensors[f"{name}.S"] = torch.ones_like(tensors[f"{name}.S"])
        return replace(self, tensors=tensors, identity=identify(tensors))


def layers(codec: Codec, mlp: bool = False) -> dict[str, nn.Linear]:
    """The linear layers that are adapted, by name: qkv and proj of every Swin block of g_a and g_s."""
    found = {}
    for side in ("g_a", "g_s"):
        for name, block in codec.get_submodule(side).named_modules(prefix=side):
            if isinstance(block, SwinBlock):
                found[f"{name}.attn.qkv"], found[f"{name}.attn.proj"] = block.attn.qkv, block.attn.proj
                if mlp:
                    found[f"{name}.mlp.fc1"], found[f"{name}.mlp.fc2"] = block.mlp.fc1, block.mlp.fc2
    return found


def seeded(codec: Codec, method: str, rank: int = 4, alpha: int = 8, mlp: bool = False, seed: int = 0) -> Adapter:
    """An adapter that changes nothing yet: columns of signs of unit length, the same on every machine.

    SVD-LoRA starts from S = 0, plain LoRA from S = 1 and U = 0. Raises LoraCompError for a rank outside 1 to 255.
    """
    if not (1 <= rank <= 255 and 1 <= alpha <= 255 and 0 <= seed <= 127):
        raise LoraCompError("an adapter needs a rank and an alpha from 1 to 255 and a seed from 0 to 127")
    rng, tensors = np.random.Generator(np.random.PCG64(seed)), {}

    def signs(rows: int) -> Tensor:
        return torch.from_numpy((2 * rng.integers(0, 2, (rows, rank)) - 1).astype(np.float32) / np.float32(rows**0.5))

    for name, layer in layers(codec, mlp).items():
        u, v = signs(layer.out_features), signs(layer.in_features)
        tensors[f"{name}.U"] = u if method == "svd_lora" else torch.zeros_like(u)
        tensors[f"{name}.S"] = torch.zeros(rank) if method == "svd_lora" else torch.ones(rank)
        tensors[f"{name}.V"] = v
    return Adapter(tensors, rank, alpha, bytes([SEEDED, rank, alpha, 2 * seed + mlp]))


def from_identity(codec: Codec, method: str, identity: bytes) -> Adapter | None:
    """The seeded adapter that a file names, or None where it names a pre-trained one."""
    if identity[0] != SEEDED:
        return None
    return seeded(codec, method, identity[1], identity[2], bool(identity[3] & 1), identity[3] >> 1)


def identify(tensors: Mapping[str, Tensor]) -> bytes:
    """The four bytes that name a pre-trained adapter: the start of the SHA-256 of its tensors, never `SEEDED`."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().float().numpy().tobytes())
    start = digest.digest()[:4]
    return bytes([start[0] | 0x80]) + start[1:]


class LowRankLinear(nn.Module):
    """A frozen linear layer with its update, for a `codecs.swin.SwinBlock` to compute.

    Tensors named in `travels` are used as a decoder will have them: `step` times whole numbers off the adapter's. They
    have a first dimension of images, for each of which `step` float32 (B,) has its own.
    """

    step: Tensor

    def __init__(self, layer: nn.Linear, tensors: Mapping[str, Tensor], scale: float, travels: str = ""):
        super().__init__()
        self.layer, self.scale, self.travels = layer, scale, travels
        self.register_buffer("step", layer.weight.new_ones(1), persistent=False)
        for name, value in tensors.items():
            value = value.to(layer.weight.device)
            setattr(self, name, nn.Parameter(value.clone()))
            self.register_buffer(f"{name}_base", value.clone())

    def step_of(self, name: str) -> Tensor:
        return self.step.view(-1, *(1 for _ in getattr(self, name).shape[1:]))

    def steps(self, name: str) -> Tensor:
        """How many steps a travelling tensor is off the adapter's, with straight-through gradients."""
        base = getattr(self, f"{name}_base")
        return round_ste((getattr(self, name) - base) / self.step_of(name))

    def value(self, name: str) -> Tensor:
        if name not in self.travels:
            return getattr(self, name)
        return getattr(self, f"{name}_base") + self.step_of(name) * self.steps(name)

    def as_layer(self) -> ops.Layer:
        u, s, v = self.value("U"), self.value("S"), self.value("V")
        return ops.Layer(self.layer.weight, self.layer.bias, u, self.scale * s, v)


class Latents(nn.Module):
    """In place of g_a: the latents of the images x (B, 3, H', W'), to be trained themselves."""

    def __init__(self, g_a: nn.Module, x: Tensor):
        super().__init__()
        with torch.no_grad():
            self.y = nn.Parameter(g_a(x.contiguous(memory_format=torch.channels_last)).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.y


class Adapted(nn.Module):
    """A codec with low-rank layers in place, to be trained: see `LowRank.prepare`.

    Where the adapter's tensors have a first dimension, the layers are those of so many images, each its own. What
    travels needs it: `exponent` int (B,) says of each image that its values are whole numbers of 2^-exponent.
    """

    exponent: np.ndarray

    def __init__(self, codec: Codec, adapter: Adapter, travels: str, exponent: int, x: Tensor | None = None):
        super().__init__()
        self.codec = copy.deepcopy(codec).requires_grad_(False)
        mlp = any(name.endswith("mlp.fc1.S") for name in adapter.tensors)
        for name, layer in layers(self.codec, mlp).items():
            tensors = {k: adapter.tensors[f"{name}.{k}"] for k in "USV"}
            decoder = name.startswith("g_s")
            low_rank = LowRankLinear(layer, tensors, adapter.scale, travels if decoder else "")
            for k in "USV":
                getattr(low_rank, k).requires_grad_(k in travels if decoder else travels == "S" or k in travels)
            parent, child = name.rsplit(".", 1)
            setattr(self.codec.get_submodule(parent), child, low_rank)
        if travels:
            self.set_exponent(np.full(len(self.travelling_parameters()[0]), exponent))
        if x is not None:
            self.codec.g_a = nn.Sequential(Latents(self.codec.g_a, x))

    def forward(self, x: Tensor) -> dict:
        return self.codec(x)

    def analyse(self, x: Tensor) -> dict:
        return self.codec.analyse(x)

    def synthesize(self, y_hat: Tensor) -> Tensor:
        return self.codec.g_s(y_hat)

    def decoder_layers(self) -> Iterator[LowRankLinear]:
        return (module for module in self.codec.g_s.modules() if isinstance(module, LowRankLinear))

    def travelling_parameters(self) -> list[nn.Parameter]:
        """What is rounded and travels, in the order of the file: a first dimension of images each."""
        return [getattr(layer, name) for layer in self.decoder_layers() for name in layer.travels]

    def travelling(self) -> Tensor:
        """What travels in whole steps, in the order of the file: (B, n)."""
        return torch.cat([layer.steps(name).flatten(1) for layer in self.decoder_layers() for name in layer.travels], 1)

    def bits(self) -> Tensor:
        """Rate of what travels: (B,) in bits, differentiable."""
        return deltas.bits(self.travelling())

    def whole(self) -> np.ndarray:
        """What travels, in steps of 2^-exponent: int32 (B, n)."""
        return np.rint(self.travelling().detach().cpu().numpy()).astype(np.int32)

    def set_exponent(self, exponent: np.ndarray) -> None:
        self.exponent = exponent
        for layer in self.decoder_layers():
            layer.step = torch.from_numpy(2.0**-exponent).to(layer.step)

    @torch.no_grad()
    def place(self, k: np.ndarray, exponent: np.ndarray) -> None:
        """Let what travels be k int32 (B, n) in steps of 2^-exponent, int (B,)."""
        self.set_exponent(exponent)
        steps, at = torch.from_numpy(k), 0
        for layer in self.decoder_layers():
            for name in layer.travels:
                value, base = getattr(layer, name), getattr(layer, f"{name}_base")
                count = value[0].numel()
                value.copy_(base + layer.step_of(name) * steps[:, at : at + count].to(value).view_as(value))
                at += count

    def propose(self, slopes: np.ndarray, exponent: np.ndarray, damping: np.ndarray) -> np.ndarray:
        """Changes int32 (B, n) in steps of 2^-exponent at which distortion and rate should be lower than they are.

        About the present place the distortion is taken as slope * d + curvature / 2 * d^2 in each value d apart. The
        curvature is a guess: damping times slope, which lets a value move by some 1 / damping.

        Args:
            slopes: of the distortion, in bits, along each change: float (B, n).
            exponent, damping: of each image: int and float (B,).
        """
        k = self.whole() * 2.0 ** (exponent - self.exponent)[:, None]
        slopes = slopes * 2.0 ** -exponent[:, None]
        curvature = damping[:, None] * (np.abs(slopes) + np.abs(slopes).mean(1, keepdims=True) / 4)
        proposed = [_nearby(*image) for image in zip(k, slopes, curvature, strict=True)]
        return np.array(proposed, np.int32)

    def payloads(self) -> list[bytes]:
        """What the file of each image carries."""
        return [deltas.encode(k, int(exponent)) for k, exponent in zip(self.whole(), self.exponent, strict=True)]


def _nearby(k: np.ndarray, slopes: np.ndarray, curvature: np.ndarray) -> list[int]:
    """The changes of one image that `Adapted.propose` finds about its present ones, k: each float (n,)."""
    nearest = np.rint(k).astype(np.int32).tolist()
    choices = []
    for start, middle, slope, curve in zip(k, nearest, slopes, curvature, strict=True):
        moves = {value: value - start for value in (*range(middle - REACH, middle + REACH + 1), 0)}
        choices.append({value: slope * d + curve / 2 * d * d for value, d in moves.items()})
    return deltas.cheapest(choices, nearest)


class LowRank:
    """SVD-LoRA (`name` "svd_lora") or plain LoRA ("lora") with a given adapter.

    Args:
        exponent: the decoder's changes are fitted in whole multiples of 2^-exponent.
    """

    def __init__(self, name: str, adapter: Adapter, exponent: int = 5):
        self.name, self.adapter, self.exponent = name, adapter, exponent
        self.travels = {"svd_lora": "S", "lora": "UV"}[name]

    def prepare(self, codec: Codec, x: Tensor | None = None, images: int = 1) -> Adapted:
        """A copy of `codec` to fit to images, each with what is trained for itself; `codec` itself is left alone.

        Without `x` the encoder's adapter is trained, as published, one for each of `images`. With the images x,
        float32 (B, 3, H', W'), their latents are, from where that adapter has them (Campos et al., "Content Adaptive
        Optimization for Neural Image Compression", CVPR workshops 2019): the copy codes x alone, and takes no time for
        the analysis transform.
        """
        images = images if x is None else len(x)
        return Adapted(codec, self.adapter.of_each(images), self.travels, self.exponent, x)

    @torch.no_grad()
    def restore(self, codec: Codec, payload: bytes) -> nn.Sequential:
        """The synthesis transform that `payload` describes, its weights merged: as fast as the plain one.

        Raises:
            BitstreamError: the payload is damaged, or made for a codec of another shape.
        """
        g_s = copy.deepcopy(codec.g_s)
        tensors = {k: v for k, v in self.adapter.tensors.items() if k.startswith("g_s.")}
        names = sorted({k.rsplit(".", 1)[0] for k in tensors}, key=list(layers(codec, mlp=True)).index)
        travelling = [f"{name}.{k}" for name in names for k in self.travels]
        changes, step = deltas.decode(payload, sum(tensors[t].numel() for t in travelling))
        at = 0
        for t in travelling:
            size = tensors[t].numel()
            tensors[t] = tensors[t] + step * torch.from_numpy(changes[at : at + size]).float().view_as(tensors[t])
            at += size
        for name in names:
            weight = g_s.get_parameter(name.removeprefix("g_s.") + ".weight")
            u, s, v = (tensors[f"{name}.{k}"].to(weight.device) for k in "USV")
            weight.copy_(ops.merge(weight, u, s, v, self.adapter.scale))
        if not all(p.isfinite().all() for p in g_s.parameters()):
            raise BitstreamError("the adapter's part of the file is damaged")
        return g_s
