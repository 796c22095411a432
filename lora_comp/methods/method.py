"""The interface of methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from lora_comp import objective
from lora_comp.finetune import OnStep
from lora_comp.objective import TILE, Objective

STEPS = 10  # chosen in docs/finetuning.md


@dataclass(frozen=True)
class FitSettings:
    """Settings of test-time fine-tuning.

    steps: number of optimiser steps.
    lr: initial learning rate; None for the task's default.
    seed: of random numbers.
    recipe: what the encoder trains besides the transmitted updates; the names are the method's.
    tile: maximal side of a tile in pixels, a multiple of 128.
    """

    steps: int = STEPS
    lr: float | None = None
    seed: int = 0
    recipe: str = "latents"
    tile: int = TILE


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


class Method(Protocol):
    """A method that adapts a codec to images and a task.

    name: its name in `METHODS`.
    identity: four bytes that identify the decoder's pre-trained adapter in a file; None if it needs none.
    guarded: whether to write the plain file if that has the lower objective.
    settings: everything else that results depend on.
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> bytes | None: ...

    @property
    def guarded(self) -> bool: ...

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
    options: a dataclass of the method's options.
    pretrain: called with the codec and `options`, see `training.adapter`; None for a method without pre-training.
    """

    load: Callable[..., Method]
    from_file: Callable[[Any, bytes | None, str | Path | None], Method]
    options: type
    pretrain: Callable[[Any, Any], "Pretraining"] | None = None


class Pretraining(Protocol):
    """A codec with an adapter, to be trained on many images.

    module: called with x (B, 3, H, W), returns a dict with x_hat and likelihoods.
    trained: the parameters to optimise, by name.
    tensors(): the adapter as stored in its file, by name.
    card: metadata for its file.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def trained(self) -> Mapping[str, nn.Parameter]: ...

    @property
    def card(self) -> Mapping[str, Any]: ...

    def tensors(self) -> Mapping[str, Tensor]: ...
