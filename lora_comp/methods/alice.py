"""ALICE: adapters that move a frozen codec to other rates.

"ALICE: Adapt your Learnable Image Compression modEl for variable bitrates", VCIP 2024: fc1 and fc2 of every Swin block
of g_a and g_s become x W^T + alpha (x A) B, with A (in, r) and B (r, out) trained for one target rate. Here U is B^T, V
is A, and S is alpha in every place (`ops.svd_lora_linear` at scale 1).

All else is frozen: W, attention, norms, the layers between stages, and the whole entropy model (h_a, h_s, the
predictions of y, the probabilities of z), also gains. So the latents of every rate are coded by the entropy model of
the frozen codec, with its step of the quantiser, and the adapted g_a must fit y to them. The paper adapts the codec of
the highest rate to lower ones.

Nothing is fitted to an image, nothing is transmitted: a file names its adapter by a hash. Updates are merged into W
(MALICE), so encoding and decoding are as fast as with the plain codec. The baseline of the paper, `vanilla`, trains W
and the biases of the same layers themselves: its adapter is a copy of them.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods.adapter_files import load_adapter, of_identity
from lora_comp.methods.low_rank import Adapter, factors, layers, merged, stages, with_adapter
from lora_comp.methods.method import FitSettings, Spec, Unfitted, check_new
from lora_comp.settings import setting

NAMES = ("alice",)
LR = 1e-4  # published, with Adam and a cosine


@dataclass(frozen=True)
class LayerOptions:
    """What an adapter of MLPs consists of; all but `adapter` are of training, as in the authors' configuration."""

    adapter: str | None = setting(None, "the adapter: a file that lora-comp train or import wrote", path=True)
    rank: int = setting(8, "in training: rank of the updates", low=1, high=255)
    alpha: int = setting(8, "in training: factor of the updates", low=1, high=255)
    fc1: bool = setting(True, "in training: adapt the first layer of every MLP")
    fc2: bool = setting(True, "in training: adapt the second layer of every MLP")
    encoder: list[bool] | None = setting(
        None, "in training: which stages of Swin blocks of g_a are adapted, from the finest; null: all"
    )
    decoder: list[bool] | None = setting(
        None, "in training: which stages of Swin blocks of g_s are adapted, from the coarsest; null: all"
    )


@dataclass(frozen=True)
class AliceOptions(LayerOptions):
    """Options of ALICE."""

    target: float | None = setting(
        None, "in training: the quality whose rate and distortion the adapter is for", low=1, high=6
    )
    vanilla: bool = setting(False, "in training: train the layers themselves, weights and biases, the paper's baseline")


def targets(codec: Any, options: LayerOptions) -> dict[str, Any]:
    """The adapted layers by name. Raises LoraCompError if the options do not fit the codec, or choose none."""
    kinds = [f"mlp.{name}" for name in ("fc1", "fc2") if getattr(options, name)]
    within = chosen(codec, "g_a", "encoder", options.encoder) + chosen(codec, "g_s", "decoder", options.decoder)
    if not (found := layers(codec, kinds, within)):
        raise LoraCompError("there is nothing to adapt: choose fc1 or fc2, and a stage of encoder or decoder")
    return found


def chosen(codec: Any, side: str, name: str, choice: list[bool] | None) -> list[str]:
    """The chosen stages of one side."""
    known = stages(codec, side)
    if choice is None:
        return known
    if len(choice) != len(known):
        raise LoraCompError(
            f"{name} must have {len(known)} values, one for each stage of Swin blocks of {codec.name}, not "
            f"{len(choice)}"
        )
    return [stage for stage, wanted in zip(known, choice, strict=True) if wanted]


def new_adapter(codec: Any, options: LayerOptions) -> Adapter:
    """An adapter whose update is zero, as published: A is normal of variance 1 / r, and B is zero."""
    tensors, generator = {}, torch.Generator().manual_seed(0)
    for name, layer in targets(codec, options).items():
        tensors[f"{name}.U"] = torch.zeros(layer.out_features, options.rank)
        tensors[f"{name}.S"] = torch.full((options.rank,), float(options.alpha))
        tensors[f"{name}.V"] = torch.randn(layer.in_features, options.rank, generator=generator) / options.rank**0.5
    return Adapter(tensors, 1.0, identity=b"")


class Alice:
    """A codec at the rate of an adapter.

    Args:
        quality: that of the codec the adapter is for.
    """

    name, guarded = "alice", False

    def __init__(self, adapter: Adapter, quality: float):
        self.adapter, self.identity, self.target = adapter, adapter.identity, adapter.card.get("target")
        self.quality = quality
        self.settings: dict[str, Any] = {}

    def prepare(self, codec: Any, x: Tensor, settings: FitSettings = FitSettings()) -> Unfitted:  # noqa: B008
        """See `methods.Method.prepare`. The settings have no effect."""
        if codec.quality != self.quality:  # of variable rate
            raise LoraCompError(
                f"the adapter of alice is for {codec.name} quality {self.quality:g}, not {codec.quality:g}: "
                "leave sizes out"
            )
        return Unfitted(merged(codec, self.adapter, ["g_a", "g_s"]), x)

    def restore(self, codec: Any, payload: bytes | None) -> Any:
        """See `methods.Method.restore`."""
        if payload is not None:
            raise BitstreamError("the file has a payload, but its method alice transmits none")
        return merged(codec, self.adapter, ["g_s"])


def load(codec: Any, task: str | None = None, **given: Any) -> Alice:
    """Load ALICE with its adapter for a codec; `given` are fields of `AliceOptions`.

    Raises LoraCompError without an adapter, for one of other weights, or for options of training.
    """
    options = AliceOptions(**given)
    if options.adapter is None:
        raise LoraCompError("method=alice needs the adapter of a rate, as lora-comp train writes: method.adapter=FILE")
    check_trained(options)
    return Alice(load_adapter(Path(options.adapter), codec, NAMES), codec.quality)


def check_trained(options: LayerOptions) -> None:
    """Raise LoraCompError for options of training."""
    own = [f.name for f in fields(options) if f.name != "adapter" and getattr(options, f.name) != f.default]
    if own:
        raise LoraCompError(f"{' and '.join(own)} can be set in training, and {options.adapter} is trained")


def from_file(codec: Any, identity: bytes | None, path: str | Path | None = None) -> Alice:
    """The method of a file. Raises BitstreamError if its adapter is not available."""
    if identity is None:
        raise BitstreamError("the file is adapted but names no adapter")
    return Alice(of_identity(codec, identity, NAMES, path), codec.quality)


class Pretraining:
    """See `methods.method.Pretraining`: A and B, or the layers themselves, shared by all images."""

    lr = LR

    def __init__(self, codec: Any, options: AliceOptions):
        check_new(options)
        self.card: dict[str, Any] = {"scale": 1, "target": options.target}
        if options.vanilla:
            if (options.rank, options.alpha) != (AliceOptions.rank, AliceOptions.alpha):
                raise LoraCompError("vanilla=true trains the layers themselves, which have no rank and no alpha")
            self.module = copy.deepcopy(codec).requires_grad_(False).train()
            chosen = targets(self.module, options)
            self.parts = {f"{n}.{k}": getattr(layer, k) for n, layer in chosen.items() for k in ("weight", "bias")}
            self.trained = self.parts
            return
        self.card |= {"rank": options.rank, "alpha": options.alpha}
        self.module = with_adapter(copy.deepcopy(codec), new_adapter(codec, options)).train()
        self.parts = factors(self.module)
        self.trained = {n: p for n, p in self.parts.items() if n[-1] in "UV"}

    def tensors(self) -> Mapping[str, Tensor]:
        return {n: p.detach() for n, p in self.parts.items()}


def rates(options: AliceOptions, frozen: float) -> tuple[float, ...]:
    """See `methods.method.Spec.rates`."""
    if options.target is None:
        raise LoraCompError("an adapter of alice is trained for a rate: method.target=3, from 1 for the fewest bits")
    return (options.target,)


SPEC = Spec(load, from_file, AliceOptions(), Pretraining, rates)
