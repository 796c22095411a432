"""The interface of methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from lora_comp import objective
from lora_comp.errors import LoraCompError
from lora_comp.finetune import OnStep
from lora_comp.objective import TILE, Objective
from lora_comp.settings import setting

STEPS = 10  # chosen in docs/finetuning.md


@dataclass(frozen=True)
class FitSettings:
    """Settings of test-time fine-tuning."""

    steps: int = setting(STEPS, "optimiser steps of test-time fine-tuning", low=0)
    lr: float | None = setting(None, "initial learning rate; null: the task's default", above=0)
    seed: int = setting(0, "seed of random numbers", low=0, high=2**63 - 1)
    recipe: str = setting(
        "latents",
        "what the encoder optimises, by the method's names; for svd_lora and lora: latents (of the image), adapter, or "
        "published (the adapter with the optimiser of the paper)",
    )
    tile: int = setting(TILE, "maximal side of a tile of a large image in pixels", low=128, step=128)


def check_new(options: Any) -> None:
    """Raise LoraCompError for an adapter to go on from, in the training of a method whose adapters start anew."""
    (default,) = [field.default for field in fields(options) if field.name == "adapter"]
    if options.adapter != default:
        raise LoraCompError(
            f"the training of this method starts anew, and not from {options.adapter}: leave adapter out"
        )


class Adapted(objective.Adapted, Protocol):
    """A codec prepared for a batch of B images, each adapted independently.

    codec: the adapted `Codec`; its `synthesize` is that of the decoder.
    """

    def latents(self, x: Tensor) -> Mapping[str, Tensor]:
        """The present latents of the images x (B, 3, H', W')."""

    def fit(self, objective: Objective, settings: FitSettings, on_step: OnStep | None = None) -> Any:
        """Minimise the objective; does nothing for a method without test-time fine-tuning."""

    def bits(self) -> Tensor:
        """Rate of the transmitted updates in bits: (B,), differentiable."""

    def payloads(self) -> list[bytes | None]:
        """The coded updates of each image; None for a method that transmits nothing."""


class Unfitted:
    """A codec that is not fitted to images and transmits nothing, or the same payload for all, as an `Adapted`."""

    def __init__(self, codec: Any, x: Tensor, payload: bytes | None = None):
        self.codec, self.latents, self.payload = codec, codec.latents, payload
        self.zeros = x.new_zeros(len(x))

    def fit(self, objective: Objective, settings: FitSettings, on_step: OnStep | None = None) -> None:
        """There is nothing to fit."""

    def bits(self) -> Tensor:
        return self.zeros

    def payloads(self) -> list[bytes | None]:
        return [self.payload] * len(self.zeros)


class Method(Protocol):
    """A method that adapts a codec to images and a task.

    name: its name in `METHODS`.
    identity: four bytes that identify the decoder's pre-trained adapter in a file; None if it needs none.
    guarded: whether to write the plain file if that has the lower objective.
    target: the quality whose objective counts, for a method that changes the rate; None: that of the codec.
    settings: everything else that results depend on.

    One that stands on another has `base`, see `methods.stacked`, whose file is what it is guarded by.

    And one that moves a frozen codec to any rate between two, which then has `Spec.moves`, has
    qualities: both, as qualities.
    at(quality): the method for another one, which is its target. Raises LoraCompError for one that is not between them.
    Its payload then says the quality, in a byte of sixteenths, so that `restore` needs no `at`.
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> bytes | None: ...

    @property
    def guarded(self) -> bool: ...

    @property
    def target(self) -> float | None: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def prepare(self, codec: Any, x: Tensor, settings: FitSettings) -> Adapted:
        """A copy of the codec to be fitted to images x, float32 (B, 3, H', W') in [0, 1]."""

    def restore(self, codec: Any, payload: bytes | None) -> Any:
        """The codec that decodes a file with this payload.

        Raises:
            BitstreamError: the payload is corrupt or does not match the codec.
        """


@dataclass(frozen=True)
class Spec:
    """An entry of `METHODS`.

    load: called with the codec, the task's key or None, and the fields of `options` as keywords.
    from_file: called with the codec, the identity in the file, and the path of an adapter or None; returns the method
        that decodes the file, or raises BitstreamError.
    options: a dataclass of the method's options (`lora_comp.settings`), or an instance with the method's own defaults.
    pretrain: called with the codec and `options`, see `training.adapter`; None for a method without pre-training.
    rates: called with `options` and the quality of a frozen codec; returns the qualities that its adapter is trained
        for, by rising rate, where they are not those of the codec: one, or several with all between. The codec then
        has one quality, also one of variable rate. Raises LoraCompError for options that say none.
    moves: whether the method moves a frozen codec to any of several rates, see `Method`.
    """

    load: Callable[..., Method]
    from_file: Callable[[Any, bytes | None, str | Path | None], Method]
    options: Any
    pretrain: Callable[[Any, Any], "Pretraining"] | None = None
    rates: Callable[[Any, float], tuple[float, ...]] | None = None
    moves: bool = False


class Pretraining(Protocol):
    """A codec with an adapter, to be trained on many images.

    module: called with x (B, 3, H, W), returns a dict with x_hat and likelihoods. Of an adapter for several rates it
        has `at(quality)`, with a quality for each image (B,), which returns what is called at those.
    trained: the parameters to optimise, by name.
    lr: default of the learning rate.
    tensors(): the adapter as stored in its file, by name.
    card: metadata for its file, with the steps and minutes of an adapter that it goes on from.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def trained(self) -> Mapping[str, nn.Parameter]: ...

    @property
    def lr(self) -> float: ...

    @property
    def card(self) -> Mapping[str, Any]: ...

    def tensors(self) -> Mapping[str, Tensor]: ...
