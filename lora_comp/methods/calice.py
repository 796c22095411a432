"""CALICE: one adapter that moves a frozen codec to any lower rate.

"CALICE: Continuous bitrate control with Adapted LIC modEl", ACM TOMM 2026, successor of ALICE (`methods.alice`) with
the same layers. A number a scales their updates, x W^T + a alpha (x A) B, and determines the lambda of the objective:

    lambda(a) = exp((1 - a) ln lambda_max + a ln lambda_min)    or linear,  (1 - a) lambda_max + a lambda_min

At a = 0 the codec is the frozen one, which was trained for lambda_max, and at a = 1 it has the lowest rate. Here a rate
is named by its quality, whose lambda is that of `codecs.tic_v.LAMBDAS`: a is the inverse of the formula above. In
training each image has its own.

A file says its quality, in a payload of one byte in sixteenths; the header's quality is that of the frozen codec. As
with ALICE the entropy model is frozen, and updates are merged into W.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_comp.bitstream import SIXTEENTHS
from lora_comp.codecs import in_sixteenths
from lora_comp.codecs.tic_v import LAMBDAS
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods.adapter_files import load_adapter, of_identity, shipped
from lora_comp.methods.alice import LayerOptions, check_trained, new_adapter
from lora_comp.methods.low_rank import Adapter, factors, low_rank_layers, merged, with_adapter
from lora_comp.methods.method import FitSettings, Spec, Unfitted, check_new
from lora_comp.settings import setting
from lora_comp.tasks.rate import rate_lambda

NAMES = ("calice",)
LR = 1e-5  # published for STF, with Adam and a cosine
INTERPOLATIONS: dict[str, Callable[[float], float]] = {"log": math.log, "linear": float}


@dataclass(frozen=True)
class CaliceOptions(LayerOptions):
    """Options of CALICE."""

    lowest: float = setting(1, "in training: the quality at a = 1", low=1, high=6)
    highest: float | None = setting(
        None,
        "in training: the quality at a = 0, that of the codec's training; null: the codec's quality",
        low=1,
        high=6,
    )
    interpolation: str = setting(
        "log", "in training: what is linear in a, ln lambda or lambda", choices=tuple(INTERPOLATIONS)
    )


@dataclass(frozen=True)
class Range:
    """The qualities of an adapter, and the a of each.

    ends: the lowest and the highest, from 1 to 6.
    interpolation: a key of `INTERPOLATIONS`.
    """

    ends: tuple[float, float]
    interpolation: str = "log"

    def a(self, quality: float) -> float:
        """The a, from 0 to 1, whose lambda is that of a quality."""
        of = INTERPOLATIONS[self.interpolation]
        least, most, own = (of(rate_lambda(LAMBDAS, q)) for q in (*self.ends, quality))
        return (most - own) / (most - least)

    @property
    def card(self) -> dict[str, Any]:
        """The part of an adapter's card from which `of_card` makes it again."""
        return {"qualities": list(self.ends), "interpolation": self.interpolation}

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> "Range":
        try:
            lowest, highest = map(float, card["qualities"])
            made = cls((in_sixteenths(lowest), in_sixteenths(highest)), card["interpolation"])
            if not made.a(lowest) > made.a(highest):
                raise ValueError
        except (KeyError, TypeError, ValueError, ArithmeticError, LoraCompError):
            raise LoraCompError("the adapter does not say between which qualities it is: train it again") from None
        return made


class Calice:
    """A frozen codec at a rate that is chosen for each file.

    Args:
        frozen: the quality of the codec.
        quality: the one to code at, the highest by default; see `at`.
    """

    name, guarded = "calice", False

    def __init__(self, adapter: Adapter, frozen: float, quality: float | None = None):
        self.adapter, self.identity, self.frozen = adapter, adapter.identity, frozen
        self.range = Range.of_card(adapter.card)
        self.qualities = self.range.ends
        self.target = self.qualities[1] if quality is None else in_sixteenths(quality)
        self.settings: dict[str, Any] = {"quality": self.target}

    def at(self, quality: float) -> "Calice":
        """The method at a quality between its ends, to the nearest sixteenth. Raises LoraCompError for another one."""
        lowest, highest = self.qualities
        if not lowest <= quality <= highest:
            raise LoraCompError(f"quality must be a number from {lowest:g} to {highest:g}, not {quality:g}")
        return Calice(self.adapter, self.frozen, quality)

    def prepare(self, codec: Any, x: Tensor, settings: FitSettings = FitSettings()) -> Unfitted:  # noqa: B008
        """See `methods.Method.prepare`. The settings have no effect."""
        if codec.quality != self.frozen:  # of variable rate
            raise LoraCompError(
                f"the adapter of calice is for {codec.name} quality {self.frozen:g}, not {codec.quality:g}: load the "
                f"codec at {self.frozen:g}, and give the method's at({codec.quality:g})"
            )
        return Unfitted(merged(codec, self.scaled(), ["g_a", "g_s"]), x, bytes([round(self.target * SIXTEENTHS)]))

    def restore(self, codec: Any, payload: bytes | None) -> Any:
        """See `methods.Method.restore`."""
        if payload is None or len(payload) != 1:
            raise BitstreamError("the file's payload is not a quality, as its method calice writes")
        try:
            there = self.at(payload[0] / SIXTEENTHS)
        except LoraCompError as error:
            raise BitstreamError(f"the file is not of its adapter: {error}") from None
        return merged(codec, there.scaled(), ["g_s"])

    def scaled(self) -> Adapter:
        """The adapter with a in its scale."""
        return replace(self.adapter, scale=self.adapter.scale * self.range.a(self.target))


def load(codec: Any, task: str | None = None, **given: Any) -> Calice:
    """Load CALICE with its adapter for a codec, by default that of the package for a task; `given` are fields of
    `CaliceOptions`.

    Raises LoraCompError without an adapter, for one of other weights, or for options of training.
    """
    options = CaliceOptions(**given)
    ours = [str(path) for path, key in shipped(codec, NAMES).items() if key == task]
    if options.adapter is None and not ours:
        raise LoraCompError("method=calice needs its adapter, as lora-comp train writes: method.adapter=FILE")
    options = replace(options, adapter=options.adapter or ours[0])
    check_trained(options)
    return Calice(load_adapter(Path(str(options.adapter)), codec, NAMES), codec.quality)


def from_file(codec: Any, identity: bytes | None, path: str | Path | None = None) -> Calice:
    """The method of a file. Raises BitstreamError if its adapter is not available."""
    if identity is None:
        raise BitstreamError("the file is adapted but names no adapter")
    return Calice(of_identity(codec, identity, NAMES, path), codec.quality)


class Moved(nn.Module):
    """A codec with the low-rank layers of an adapter, at a quality for each image."""

    def __init__(self, codec: nn.Module, of: Range):
        super().__init__()
        self.codec, self.range = codec, of

    def at(self, quality: Tensor) -> nn.Module:
        """The codec for a batch of images of these qualities (B,)."""
        scale = torch.tensor([[self.range.a(q)] for q in quality.tolist()], device=quality.device)
        for layer in low_rank_layers(self.codec).values():
            layer.scale = scale
        return self.codec


class Pretraining:
    """See `methods.method.Pretraining`: A and B, shared by all images and rates."""

    lr = LR

    def __init__(self, codec: Any, options: CaliceOptions):
        check_new(options)
        lowest, _, highest = rates(options, codec.quality)
        of = Range((lowest, highest), options.interpolation)
        self.module = Moved(with_adapter(copy.deepcopy(codec), new_adapter(codec, options)).train(), of)
        self.parts = factors(self.module.codec)
        self.trained = {n: p for n, p in self.parts.items() if n[-1] in "UV"}
        self.card = {"scale": 1, "rank": options.rank, "alpha": options.alpha, **of.card}

    def tensors(self) -> Mapping[str, Tensor]:
        return {n: p.detach() for n, p in self.parts.items()}


def rates(options: CaliceOptions, frozen: float) -> tuple[float, ...]:
    """See `methods.method.Spec.rates`: both ends and the middle."""
    lowest, highest = in_sixteenths(options.lowest), in_sixteenths(options.highest or frozen)
    if not lowest < highest:
        raise LoraCompError(f"method.lowest must be below the highest quality, {highest:g}, not {options.lowest:g}")
    return lowest, (lowest + highest) / 2, highest


SPEC = Spec(load, from_file, CaliceOptions(), Pretraining, rates, moves=True)
