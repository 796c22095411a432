"""What the rest of the package may rely on of a method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from lora_comp import objective
from lora_comp.finetune import OnStep
from lora_comp.objective import TILE, Objective
from lora_comp.settings import setting

STEPS = 10  # found by measuring: docs/finetuning.md


@dataclass(frozen=True)
class FitSettings:
    """How an image is fitted."""

    steps: int = setting(STEPS, "updates of test-time fine-tuning", low=0)
    lr: float | None = setting(None, "learning rate of the first step; null: the task's own", above=0)
    seed: int = setting(0, "of anything random", low=0, high=2**63 - 1)
    recipe: str = setting(
        "latents",
        "what the encoder optimises, by the method's own names; of svd_lora and lora: latents (of the image), adapter, "
        "published (the adapter, by the optimiser of the paper)",
    )
    tile: int = setting(TILE, "longest side of what the task sees at once of a large image, pixels", low=128, step=128)


class Adapted(objective.Adapted, Protocol):
    """A codec prepared for a batch of B images, each adapted independently.

    codec: a `Codec` that synthesizes as the decoder will.
    """

    def latents(self, x: Tensor) -> Mapping[str, Tensor]:
        """The latents of the images x (B, 3, H', W') as they are at present."""

    def fit(self, objective: Objective, settings: FitSettings, on_step: OnStep | None = None) -> Any:
        """Lower the objective. Nothing to do for a method without test-time optimisation."""

    def bits(self) -> Tensor:
        """Rate of what is transmitted beside the latents: (B,), differentiable."""

    def payloads(self) -> list[bytes | None]:
        """What the file of each image carries beside the latents; None for a method that transmits nothing."""


class Method(Protocol):
    """A way to adapt a codec to images and a task.

    name: its name in `METHODS`. settings: what a result depends on beside the identity.
    identity: four bytes by which a file names the pre-trained adapter that its decoder needs; None if it needs none.
    guarded: whether the plain file is written where it has the lower objective.
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
        """The codec, itself left alone, made ready to be fitted to images x float32 (B, 3, H', W')."""

    def restore(self, codec: Any, payload: bytes | None) -> Any:
        """The codec that decodes a file with this payload: its coder, synthesis and output.

        Raises:
            BitstreamError: the payload is damaged, or made for a codec of another shape.
        """


@dataclass(frozen=True)
class Spec:
    """How a method is made.

    load: called with the codec, the task's key or None, and the fields of `options` as keywords.
    from_file: called with the codec, the identity in the file and the path of an adapter or None; the method that
        decodes it, or BitstreamError.
    options: a dataclass of what a user may set (`lora_comp.settings`), or an instance with the method's own defaults.
    pretrain: called with the codec and `options`: see `training.adapter`. None where nothing is pre-trained.
    """

    load: Callable[..., Method]
    from_file: Callable[[Any, bytes | None, str | Path | None], Method]
    options: Any
    pretrain: Callable[[Any, Any], "Pretraining"] | None = None


class Pretraining(Protocol):
    """A codec with an adapter in place, to be trained over many images.

    module: an nn.Module called as a codec: x to x_hat and likelihoods.
    trained: what is optimised. tensors(): the adapter by name, as its file holds it. card: what its file says of it.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def trained(self) -> Mapping[str, nn.Parameter]: ...

    @property
    def card(self) -> Mapping[str, Any]: ...

    def tensors(self) -> Mapping[str, Tensor]: ...
