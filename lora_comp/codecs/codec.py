"""What methods, coding and training may rely on of a codec."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lora_comp.entropy.coder import LatentCoder
from lora_comp.entropy.models import round_ste

Latents: TypeAlias = Mapping[str, Tensor]
Rounding: TypeAlias = Callable[[Tensor], Tensor]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Output:
    """What a codec decodes to: an image, or features that a task network continues from.

    features: name of the layer that they stand for; None for an image.
    stride: pixels of the image to a position of the output, along each side.
    """

    features: str | None = None
    stride: int = 1

    def crop(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """The part (B, C, h, w) of a decoded output that belongs to an image of `size` (H, W), an image's values
        clamped to [0, 1]."""
        height, width = (math.ceil(side / self.stride) for side in size)
        cropped = output[..., :height, :width]
        return cropped.clamp(0, 1) if self.features is None else cropped


@dataclass(frozen=True)
class Rate:
    """What the entropy model makes of latents.

    y_hat: what the synthesis takes. likelihoods: of all latents, by name.
    predictions: what it computed on the way, by name, as z_hat, scales and means.
    """

    y_hat: Tensor
    likelihoods: Mapping[str, Tensor]
    predictions: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def bits(self) -> Tensor:
        """Ideal code length of each image, float32 (B,): the sum of -log2 p over its latents."""
        return torch.stack([-p.log2().flatten(1).sum(1) for p in self.likelihoods.values()]).sum(0)


class Codec(Protocol):
    """A frozen learned image codec: an nn.Module that knows nothing of methods, tasks and files.

    name, quality, hash: set by `load_codec`; the hash is that of its weights, 4 bytes.
    stride, latent_stride: pixels to a position of the coarsest latent, and of y. Sides of x are multiples of `stride`.
    output: what `synthesize` gives.
    """

    name: str
    quality: float
    hash: bytes
    stride: int
    latent_stride: int
    output: Output

    def latents(self, x: Tensor) -> Latents:
        """Analysis: x float32 (B, 3, H, W) in [0, 1] to y and, where the codec has one, z, not rounded."""

    def latents_from(self, y: Tensor) -> Latents:
        """The latents that follow from a given y: y itself and, where the codec has one, z."""

    def rate(self, latents: Latents, rounding: Rounding = round_ste) -> Rate:
        """Quantises latents by `rounding` and estimates what they cost."""

    def synthesize(self, y_hat: Tensor) -> Tensor:
        """Synthesis: y_hat to the output, neither cropped nor clamped."""

    def coder(self) -> LatentCoder:
        """Writes latents of one image to sections of a file, and reads them."""


def replace_modules(codec: Module, **modules: nn.Module) -> Module:
    """A codec with other modules under these names; everything else is shared with the one given."""
    made = copy.copy(codec)
    made.__dict__["_modules"] = codec._modules | modules
    return made
