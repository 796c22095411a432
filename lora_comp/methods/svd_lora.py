"""SVD-LoRA test-time fine-tuning, and plain LoRA.

"Test-Time Fine-Tuning of Image Compression Models for Multi-Task Adaptability", CVPR 2025: every attention layer W of
g_a and g_s becomes W + (alpha / r) U diag(S) V^T (`ops.svd_lora`). Pre-training optimises U, S and V for a task. For
each image, the encoder optimises its latents or its own adapter together with the decoder's S, and transmits the
quantised change of the decoder's S. Plain LoRA (Hu et al., ICLR 2022) fixes S at 1 and transmits U and V.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_comp.entropy import updates
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.finetune import Group, OnStep, Schedule, descend, linear
from lora_comp.methods.adapter_files import choose, of_identity
from lora_comp.methods.low_rank import (
    ATTENTION,
    MLP,
    Adapter,
    LowRankLinear,
    Quantised,
    factors,
    from_identity,
    layers,
    merged,
    seeded,
    with_adapter,
)
from lora_comp.methods.method import FitSettings, Spec
from lora_comp.methods.refine import ATTEMPTS, refine
from lora_comp.objective import Objective
from lora_comp.settings import setting

RECIPES = ("latents", "adapter", "published")
# Learning rates of the encoder's parameters relative to that of the transmitted updates: docs/finetuning.md
LATENT_SHARE = 1.5
ENCODER_SHARES = {"U": 0.5, "S": 0.25, "V": 0.5}
# No momentum, since ten steps are too few to correct it.
OURS = Schedule(linear, betas=(0.0, 0.9))
MILESTONES = (15 / 40, 25 / 40, 30 / 40, 35 / 40)  # fractions of the steps; the published schedule halves the rate


@dataclass(frozen=True)
class Variant:
    """Which of U, S and V are trained in the encoder and transmitted to the decoder.

    start: constants of a seeded adapter.
    adapters: methods whose pre-trained adapters may be used, in order of preference.
    """

    encoder_trains: str
    transmitted: str
    start: Mapping[str, float]
    adapters: tuple[str, ...]


VARIANTS = {
    "svd_lora": Variant("USV", "S", {"S": 0.0}, ("svd_lora",)),
    "lora": Variant("UV", "UV", {"S": 1.0, "U": 0.0}, ("lora", "svd_lora")),
}


@dataclass(frozen=True)
class LowRankOptions:
    """Options of SVD-LoRA and LoRA."""

    adapter: str | None = setting(
        "auto",
        "auto: the one pre-trained for the task, else, and on a base, a seeded one; a file; the key of another task, "
        "such as cls-scenes; null: a seeded one",
        path=True,
    )
    base: str | None = setting(
        None,
        "what it is fitted on top of: the file of an adapter of alice, calice or transtic; null: nothing",
        path=True,
    )
    rank: int | None = setting(None, "rank of a seeded adapter; null: 4", low=1, high=255)
    alpha: int | None = setting(
        None, "alpha of a seeded adapter, whose updates are scaled by alpha / rank; null: 8", low=1, high=255
    )
    mlp: bool | None = setting(None, "include fc1 and fc2 in a seeded adapter; null: false")
    seed: int | None = setting(None, "seed of a seeded adapter; null: 0", low=0, high=127)
    exponent: int = setting(
        5,
        "transmitted updates are fitted in steps of 2^-exponent; half and twice that are tried afterwards",
        low=0,
        high=24,
    )

    def of_seeded(self) -> dict[str, Any]:
        """What was set of a seeded adapter."""
        named = {"rank": self.rank, "alpha": self.alpha, "mlp": self.mlp, "seed": self.seed}
        return {name: value for name, value in named.items() if value is not None}


def published_factor(step: int, steps: int) -> float:
    """The published schedule: halved at each of `MILESTONES`."""
    return 0.5 ** sum(step >= math.ceil(m * steps) for m in MILESTONES)


class AdaptedLowRank(nn.Module):
    """A codec with low-rank layers for each of B images.

    y: the optimised latents (B, M, h, w), before the gains of a codec that has them; None if the encoder's adapter is
        optimised instead.
    exponent: int (B,); the transmitted updates of an image are integer multiples of 2^-exponent.
    """

    exponent: np.ndarray

    def __init__(self, codec: Any, adapter: Adapter, variant: Variant, exponent: int, x: Tensor, recipe: str):
        super().__init__()
        self.variant, self.recipe = variant, recipe
        self.codec = with_adapter(codec, adapter.expand(len(x)), variant.transmitted)
        self.set_exponent(np.full(len(x), exponent))
        self.y: nn.Parameter | None = None
        if recipe == "latents":  # Campos et al., "Content Adaptive Optimization for Neural Image Compression", 2019
            with torch.no_grad():
                self.y = nn.Parameter(self.codec.unscaled(x) if self._has_gains() else self.codec.latents(x)["y"])

    def _has_gains(self) -> bool:
        """Whether y is optimised before the gains of a codec of variable rate: a step then moves it as far at all
        rates, and what a gain drops stays dropped."""
        return hasattr(self.codec, "scaled")

    def latents(self, x: Tensor) -> Mapping[str, Tensor]:
        if self.y is None:
            return self.codec.latents(x)
        return self.codec.latents_from(self.codec.scaled(self.y) if self._has_gains() else self.y)

    def groups(self, lr: float) -> list[Group]:
        """The optimised parameters and their learning rates; the published recipe has a single rate."""
        shares = dict.fromkeys("USV", 1.0) if self.recipe == "published" else ENCODER_SHARES
        groups = [Group([q.latent for q in self.transmitted()], lr)]
        if self.y is not None:
            return [*groups, Group([self.y], lr * LATENT_SHARE)]
        encoder = [m for m in self.codec.g_a.modules() if isinstance(m, LowRankLinear)]
        return groups + [
            Group([getattr(layer, name) for layer in encoder], lr * shares[name])
            for name in self.variant.encoder_trains
        ]

    def fit(self, objective: Objective, settings: FitSettings, on_step: OnStep | None = None) -> Tensor:
        """Gradient descent, then `refine`. Returns the objectives of the descent: float32 (steps + 1, B)."""
        assert settings.lr is not None
        groups = self.groups(settings.lr)
        schedule = Schedule(published_factor) if self.recipe == "published" else OURS
        losses = descend(partial(objective.evaluate, self), groups, settings.steps, schedule, settings.seed, on_step)
        refine(self, objective, attempts=ATTEMPTS if self.y is None else 1)
        return losses

    def transmitted(self) -> list[Quantised]:
        """The transmitted tensors in the order of the file."""
        return [
            getattr(layer, name)
            for layer in self.codec.g_s.modules()
            if isinstance(layer, LowRankLinear)
            for name in self.variant.transmitted
        ]

    def rounded(self) -> Tensor:
        """The transmitted integers: float32 (B, n), with straight-through gradients."""
        return torch.cat([q.symbols().flatten(1) for q in self.transmitted()], 1)

    def symbols(self) -> np.ndarray:
        """The transmitted integers: int32 (B, n)."""
        return np.rint(self.rounded().detach().cpu().numpy()).astype(np.int32)

    def bits(self) -> Tensor:
        return updates.bits(self.rounded())

    def set_exponent(self, exponent: np.ndarray) -> None:
        self.exponent = exponent
        for quantised in self.transmitted():
            quantised.step = torch.from_numpy(2.0**-exponent).to(quantised.step)

    def place(self, k: np.ndarray, exponent: np.ndarray) -> None:
        """Set the transmitted integers to k, int32 (B, n), in steps of 2^-exponent, int (B,)."""
        self.set_exponent(exponent)
        sizes = [q.base[0].numel() for q in self.transmitted()]
        for quantised, values in zip(self.transmitted(), torch.from_numpy(k).split(sizes, 1), strict=True):
            quantised.place(values)

    def payloads(self) -> list[bytes | None]:
        return [updates.encode(k, int(exponent)) for k, exponent in zip(self.symbols(), self.exponent, strict=True)]


class LowRank:
    """SVD-LoRA (`name` "svd_lora") or plain LoRA ("lora") with an adapter.

    Args:
        exponent: the transmitted updates are fitted in steps of 2^-exponent.
    """

    guarded, target = True, None

    def __init__(self, name: str, adapter: Adapter, exponent: int = 5):
        self.name, self.adapter, self.exponent = name, adapter, exponent
        self.variant, self.identity = VARIANTS[name], adapter.identity
        self.settings = {"exponent": exponent}

    def prepare(self, codec: Any, x: Tensor, settings: FitSettings = FitSettings()) -> AdaptedLowRank:  # noqa: B008
        """See `methods.Method.prepare`.

        settings.recipe selects what the encoder optimises: "latents": the latents, initialised by the adapted encoder;
        "adapter": the encoder's adapter, whose memory grows with the image; "published": the same with the optimiser of
        the paper, for which steps=40 and lr=5e-3 were published.
        """
        if settings.recipe not in RECIPES:
            raise LoraCompError(f"recipe must be one of {', '.join(RECIPES)}, not {settings.recipe!r}")
        return AdaptedLowRank(codec, self.adapter, self.variant, self.exponent, x, settings.recipe)

    @torch.no_grad()
    def restore(self, codec: Any, payload: bytes | None) -> Any:
        """See `methods.Method.restore`. Updates are merged, so decoding is as fast as with the plain codec."""
        if payload is None:
            raise BitstreamError("the file is adapted but has no payload")
        order = list(layers(codec, ATTENTION + MLP))
        names = sorted((n for n in self.adapter.layers if n.startswith("g_s.")), key=order.index)
        tensors = {f"{name}.{k}": self.adapter.tensors[f"{name}.{k}"] for name in names for k in "USV"}
        transmitted = [f"{name}.{k}" for name in names for k in self.variant.transmitted]
        sizes = [tensors[t].numel() for t in transmitted]
        changes, step = updates.decode(payload, sum(sizes))
        for t, change in zip(transmitted, torch.from_numpy(changes).float().split(sizes), strict=True):
            tensors[t] = tensors[t] + step * change.view_as(tensors[t])
        made = merged(codec, replace(self.adapter, tensors=tensors | self.adapter.gains), ["g_s"])
        if not all(p.isfinite().all() for p in made.g_s.parameters()):
            raise BitstreamError(updates.DAMAGED)
        return made


def load(name: str, codec: Any, task: str | None = None, **given: Any) -> LowRank:
    """Load SVD-LoRA or LoRA with its adapter for a codec; `given` are fields of `LowRankOptions`.

    task: key of the task, such as "cls-scenes", or of several, such as "cls-scenes+det-scenes". adapter="auto" uses the
        adapter of the first task that has one, but on a base a seeded one, since adapters are trained for the codec.
        Plain LoRA may use that of SVD-LoRA, with S folded into U.
    Raises LoraCompError for an option out of range or an unsuitable adapter.
    """
    options = LowRankOptions(**given)
    if options.exponent not in updates.EXPONENTS:
        first, last = updates.EXPONENTS[0], updates.EXPONENTS[-1]
        raise LoraCompError(f"exponent must be {first} to {last}, not {options.exponent}")
    wanted = None if options.base and options.adapter == "auto" else options.adapter
    pretrained = None if wanted is None else choose(codec, VARIANTS[name].adapters, wanted, task)
    if pretrained is None:
        return LowRank(name, seeded(codec, VARIANTS[name].start, **options.of_seeded()), options.exponent)
    if own := options.of_seeded():
        raise LoraCompError(
            f"{' and '.join(own)} can be set of a seeded adapter, and a pre-trained one of rank {pretrained.rank} is "
            f"used: leave {'them' if len(own) > 1 else 'it'} out, or set adapter=null"
        )
    return LowRank(name, _in_form(name, pretrained), options.exponent)


def _in_form(name: str, adapter: Adapter) -> Adapter:
    return adapter.folded() if name == "lora" else adapter


def from_file(name: str, codec: Any, identity: bytes | None, path: str | Path | None = None) -> LowRank:
    """The method of a file; its adapter is generated from a seed, read from `path`, or found in the package.

    Raises:
        BitstreamError: the adapter is not available.
    """
    if identity is None:
        raise BitstreamError("the file is adapted but names no adapter")
    try:
        made = from_identity(codec, VARIANTS[name].start, identity)
    except LoraCompError as error:
        raise BitstreamError(f"the file names an invalid adapter: {error}") from None
    if made is not None:
        return LowRank(name, made)
    return LowRank(name, of_identity(codec, identity, VARIANTS[name].adapters, path, partial(_in_form, name)))


class Pretraining:
    """See `methods.method.Pretraining`: U, S and V of g_a and g_s, shared by all images, and of a codec of variable
    rate its gain vectors, which say how finely each channel of y is quantised at each quality. U, S and V begin as
    `load` has them without a task: seeded, or as those of `options.adapter`."""

    lr = 2e-2

    def __init__(self, name: str, codec: Any, options: LowRankOptions):
        if options.base is not None:
            raise LoraCompError(f"an adapter of {name} is trained for the frozen codec: leave base out")
        adapter = load(name, codec, **dataclasses.asdict(options)).adapter
        self.module = with_adapter(copy.deepcopy(codec), adapter).train()
        gains = {n: self.module.get_parameter(n) for n in getattr(codec, "gains", ())}
        low_rank = factors(self.module)
        self.parts = low_rank | gains
        self.trained = {n: p for n, p in low_rank.items() if n[-1] in VARIANTS[name].encoder_trains} | gains
        self.card = {name: adapter.card[name] for name in ("steps", "minutes") if name in adapter.card}
        self.card |= {"rank": adapter.rank, "alpha": round(adapter.scale * adapter.rank)}

    def tensors(self) -> Mapping[str, Tensor]:
        return {n: p.detach() for n, p in self.parts.items()}


def spec(name: str, options: LowRankOptions) -> Spec:
    return Spec(partial(load, name), partial(from_file, name), options, partial(Pretraining, name))
