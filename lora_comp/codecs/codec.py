"""The interface of codecs."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lora_comp.entropy.coder import LatentCoder
from lora_comp.entropy.models import Rounding, round_ste

Latents: TypeAlias = Mapping[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Output:
    """The output of a codec: an image, or features that a task network continues from.

    features: name of the layer of the features; None for an image.
    stride: pixels of the image per position of the output, along each side.
    """

    features: str | None = None
    stride: int = 1

    def crop(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """Crop a decoded output to (B, C, h, w) for an image of `size` (H, W); images are clamped to [0, 1]."""
        height, width = (math.ceil(side / self.stride) for side in size)
        cropped = output[..., :height, :width]
        return cropped.clamp(0, 1) if self.features is None else cropped


def code_length(likelihoods: Mapping[str, Tensor]) -> Tensor:
    """Ideal code length of each image in bits, float32 (B,): the sum of -log2 p over its latents, by name."""
    return torch.stack([-p.log2().flatten(1).sum(1) for p in likelihoods.values()]).sum(0)


@dataclass(frozen=True)
class Rate:
    """Quantised latents and their rate.

    y_hat: input of the synthesis transform.
    likelihoods: of all latents, by name.
    predictions: intermediate results by name, such as z_hat, scales and means.
    """

    y_hat: Tensor
    likelihoods: Mapping[str, Tensor]
    predictions: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def bits(self) -> Tensor:
        """`code_length` of the likelihoods."""
        return code_length(self.likelihoods)


class Codec(Protocol):
    """A learned image codec: an nn.Module that depends on no method, task or file format.

    name, quality, rate_point, hash: set by `load_codec`. `rate_point` is the quality that the weights are for, None for
        all; `hash` has 4 bytes, see `weights_hash`.
    stride, latent_stride: pixels per position of the coarsest latent, and of y. Sides of x are multiples of `stride`.
    output: kind of the output of `synthesize`.
    """

    name: str
    quality: float
    rate_point: float | None
    hash: bytes
    stride: int
    latent_stride: int
    output: Output

    def latents(self, x: Tensor) -> Latents:
        """Analysis transforms: x float32 (B, 3, H, W) in [0, 1] to y and, if the codec has one, z, unquantised."""

    def latents_from(self, y: Tensor) -> Latents:
        """The latents for a given y: y and, if the codec has one, z."""

    def rate(self, latents: Latents, rounding: Rounding = round_ste) -> Rate:
        """Quantise latents by `rounding` and estimate their rate."""

    def synthesize(self, y_hat: Tensor) -> Tensor:
        """Synthesis transform: y_hat to the output, neither cropped nor clamped."""

    def coder(self) -> LatentCoder:
        """The entropy coder of this codec's latents."""


def replace_parts(codec: Module, **parts: nn.Module | nn.Parameter) -> Module:
    """A copy of a codec with some modules and parameters of its own replaced; all others are shared."""
    made = copy.copy(codec)
    for kind in ("_modules", "_parameters"):
        own = getattr(codec, kind)
        made.__dict__[kind] = own | {name: part for name, part in parts.items() if name in own}
    return made


def title(name: str, rate_point: float | None) -> str:
    """What messages call weights: "tic quality 2", or "tic-v" for those of all rates."""
    return name if rate_point is None else f"{name} quality {rate_point:g}"
