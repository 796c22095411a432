"""The objective that fine-tuning minimises for each image of a batch (LoRA_comp, CVPR 2025, eq. 5):

    weight x distortion(x_hat, x) + bits(latents and transmitted updates) / pixels

A large image is divided into tiles. The synthesis transform and the task process one tile at a time, which bounds
memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from lora_comp.codecs import Latents
from lora_comp.entropy.models import Rounding, round_ste
from lora_comp.errors import LoraCompError
from lora_comp.ops.swin_block import HALF

TILE = 1024  # pixels: default maximal side of a tile
GRID = 128  # pixels: tiles start at multiples of the coarsest attention window, which keeps all windows aligned

Distortion: TypeAlias = Callable[[Tensor], Tensor]


class Adapted(Protocol):
    """A codec that a method has prepared for a batch of B images; see `methods.Adapted`."""

    @property
    def codec(self) -> Any: ...

    def latents(self, x: Tensor) -> Latents: ...

    def bits(self) -> Tensor: ...


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image, and the latents that the synthesis transform needs for it.

    image: rows and columns of the image.
    latents: rows and columns of y, with a margin of `GRID` pixels inside the image.
    own: rows and columns of the tile in the output synthesised from `latents`.
    share: fraction of the image's pixels.
    distortion: maps the decoded tiles (B, C, h, w) to their distortions (B,).
    """

    image: tuple[slice, slice]
    latents: tuple[slice, slice]
    own: tuple[slice, slice]
    share: float
    distortion: Distortion


def tiles(
    size: tuple[int, int], codec: Any, distortion_of: Callable[[slice, slice], Distortion], side: int = TILE
) -> list[Tile]:
    """The tiles of an image.

    Args:
        size: (H, W) of the image in pixels.
        codec: has `stride`, `latent_stride` and `output`.
        distortion_of: called with rows and columns of the image, returns the distortion of that tile.
        side: maximal side of a tile in pixels, a multiple of `GRID`.
    Raises:
        LoraCompError: `side` is not a positive multiple of `GRID`.
    """
    if side < GRID or side % GRID:
        raise LoraCompError(f"tile must be a multiple of {GRID} pixels, such as 256, not {side}")
    latent, out = codec.latent_stride, codec.output.stride
    made = []
    for rows in _cut(size[0], side):
        for columns in _cut(size[1], side):
            around = [_around(own, extent, codec.stride) for own, extent in zip((rows, columns), size, strict=True)]
            made.append(
                Tile(
                    image=(rows, columns),
                    latents=(
                        slice(around[0].start // latent, around[0].stop // latent),
                        slice(around[1].start // latent, around[1].stop // latent),
                    ),
                    own=(_relative(rows, around[0], out), _relative(columns, around[1], out)),
                    share=(rows.stop - rows.start) * (columns.stop - columns.start) / (size[0] * size[1]),
                    distortion=distortion_of(rows, columns),
                )
            )
    return made


def _cut(extent: int, side: int) -> Iterator[slice]:
    count = math.ceil(extent / side)
    length = math.ceil(extent / count / GRID) * GRID
    for start in range(0, extent, length):
        yield slice(start, min(start + length, extent))


def _around(own: slice, extent: int, stride: int) -> slice:
    padded = math.ceil(extent / stride) * stride
    return slice(max(own.start - GRID, 0), padded if own.stop == extent else min(own.stop + GRID, padded))


def _relative(own: slice, around: slice, stride: int) -> slice:
    return slice((own.start - around.start) // stride, math.ceil((own.stop - around.start) / stride))


def use_bf16(device: torch.device) -> bool:
    """Whether to use bfloat16 autocast: on a GPU, and on a processor with AMX or AVX-512 BF16."""
    return device.type == "cuda" or HALF


@dataclass(frozen=True)
class Objective:
    """The objective of each image of a batch.

    x: float32 (B, 3, H', W') in [0, 1], padded to multiples of the codec's stride.
    size: (H, W) of the images before padding.
    tiles: see `tiles`.
    weight: factor of the distortion, relative to bits per pixel.
    """

    x: Tensor
    size: tuple[int, int]
    tiles: Sequence[Tile]
    weight: float

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    def autocast(self) -> torch.autocast:
        device = self.x.device
        return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device))

    def evaluate(self, adapted: Adapted, backward: bool = False, rounding: Rounding = round_ste) -> Tensor:
        """The objectives (B,), detached, of latents quantised by `rounding`; with `backward`, the gradient of their sum
        is accumulated.

        The synthesis transform and the task run forward and backward tile by tile, then the encoder at once.
        """
        with torch.set_grad_enabled(backward):
            with self.autocast():
                rate = adapted.codec.rate(adapted.latents(self.x), rounding)
            bpp = (adapted.bits() + rate.bits) / self.pixels  # (B,)
            y_hat = rate.y_hat.detach().requires_grad_(backward)
            total = bpp.detach()
            for tile in self.tiles:
                with self.autocast():
                    distortion = self.weight * self.distortion(tile, adapted.codec, y_hat)
                total = total + distortion.detach()
                if backward:
                    distortion.sum().backward()
            if backward:
                torch.autograd.backward([bpp.sum(), rate.y_hat], [None, y_hat.grad])
        return total

    def distortion(self, tile: Tile, codec: Any, y_hat: Tensor) -> Tensor:
        """A tile's contribution to each image's distortion, (B,), when `codec` synthesises y_hat (B, M, h, w)."""
        (rows, columns), (own_rows, own_columns) = tile.latents, tile.own
        output = codec.synthesize(y_hat[..., rows, columns])[..., own_rows, own_columns].float()
        return tile.share * tile.distortion(output.clamp(0, 1) if codec.output.features is None else output)

    @torch.no_grad()
    def of_files(self, decoded: Tensor, files: Sequence[bytes], stride: int = 1) -> list[float]:
        """The objectives of files, from their sizes and what they decode to: (B, C, h, w), `stride` pixels apart."""
        distortion = torch.zeros(len(files), dtype=torch.float64)
        for tile in self.tiles:
            rows, columns = (slice(own.start // stride, math.ceil(own.stop / stride)) for own in tile.image)
            distortion += tile.share * tile.distortion(decoded[..., rows, columns]).cpu()
        bpp = [8 * len(data) / self.pixels for data in files]
        return [self.weight * d + rate for d, rate in zip(distortion.tolist(), bpp, strict=True)]
