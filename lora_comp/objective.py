"""What fine-tuning minimises for each image of a batch (LoRA_comp, CVPR 2025, eq. 5):

    weight x distortion(x_hat, x) + bits(latents, what a method transmits beside them) / pixels

A large image is taken in tiles: the synthesis and the task see one of them at a time, so that memory does not grow with
the image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from lora_comp.codecs import Latents
from lora_comp.errors import LoraCompError
from lora_comp.ops.swin_block import HALF

TILE = 1024  # pixels: the longest side of a tile by default
GRID = 128  # pixels: tiles begin at multiples of the coarsest attention windows, which so lie as in the whole image

Distortion: TypeAlias = Callable[[Tensor], Tensor]


class Adapted(Protocol):
    """A codec that a method has prepared for a batch of B images; see `methods.Adapted`."""

    @property
    def codec(self) -> Any: ...

    def latents(self, x: Tensor) -> Latents: ...

    def bits(self) -> Tensor: ...


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image, and the latents around it that the synthesis makes it of.

    image: its rows and columns.
    latents: rows and columns of y, with a margin of `GRID` pixels where the image goes on.
    own: rows and columns of what the synthesis makes of those, in positions of the codec's output.
    share: of the image's pixels.
    distortion: of the decoded (B, C, h, w) of this tile of each image, a tensor (B,).
    """

    image: tuple[slice, slice]
    latents: tuple[slice, slice]
    own: tuple[slice, slice]
    share: float
    distortion: Distortion


def tiles(
    size: tuple[int, int], codec: Any, distortion_of: Callable[[slice, slice], Distortion], side: int = TILE
) -> list[Tile]:
    """The tiles of an image of `size` (H, W); one where no side is longer than `side`.

    Args:
        codec: has `stride`, `latent_stride` and `output`.
        distortion_of: of the tile with these rows and columns of the image.
        side: pixels, a multiple of `GRID`; LoraCompError for another.
    """
    if side < GRID or side % GRID:
        raise LoraCompError(f"tile must be a multiple of {GRID} pixels, as 256, not {side}")
    latent, out = codec.latent_stride, codec.output.stride
    found = []
    for rows in _cut(size[0], side):
        for columns in _cut(size[1], side):
            around = [_around(own, extent, codec.stride) for own, extent in zip((rows, columns), size, strict=True)]
            found.append(
                Tile(
                    image=(rows, columns),
                    latents=(
                        slice(around[0].start // latent, around[0].stop // latent),
                        slice(around[1].start // latent, around[1].stop // latent),
                    ),
                    own=(_within(rows, around[0], out), _within(columns, around[1], out)),
                    share=(rows.stop - rows.start) * (columns.stop - columns.start) / (size[0] * size[1]),
                    distortion=distortion_of(rows, columns),
                )
            )
    return found


def _cut(extent: int, side: int) -> Iterator[slice]:
    count = math.ceil(extent / side)
    length = math.ceil(extent / count / GRID) * GRID
    for start in range(0, extent, length):
        yield slice(start, min(start + length, extent))


def _around(own: slice, extent: int, stride: int) -> slice:
    padded = math.ceil(extent / stride) * stride
    return slice(max(own.start - GRID, 0), padded if own.stop == extent else min(own.stop + GRID, padded))


def _within(own: slice, around: slice, stride: int) -> slice:
    return slice((own.start - around.start) // stride, math.ceil((own.stop - around.start) / stride))


def use_bf16(device: torch.device) -> bool:
    """Whether to fine-tune under bfloat16 autocast: on a GPU, and where the processor has AMX."""
    return device.type == "cuda" or HALF


@dataclass(frozen=True)
class Objective:
    """The objective of each image of a batch.

    x: float32 (B, 3, H', W'), padded to multiples of the codec's stride; `size` is the images' own (H, W).
    tiles: of the images, with the task's distortions.
    weight: of the distortion against bits per pixel.
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

    def evaluate(self, adapted: Adapted, backward: bool = False) -> Tensor:
        """The objectives (B,), without gradient; with `backward`, the gradient of their sum is added to what is
        trained. The synthesis and the task run forward and backward tile by tile, then the rest at once."""
        with torch.set_grad_enabled(backward):
            with self.autocast():
                rate = adapted.codec.rate(adapted.latents(self.x))
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
        """A tile's share of each image's distortion, (B,), of what `codec` makes of y_hat."""
        (rows, columns), (own_rows, own_columns) = tile.latents, tile.own
        output = codec.synthesize(y_hat[..., rows, columns])[..., own_rows, own_columns].float()
        return tile.share * tile.distortion(output.clamp(0, 1) if codec.output.features is None else output)

    @torch.no_grad()
    def of_files(self, decoded: Tensor, files: Sequence[bytes], stride: int = 1) -> list[float]:
        """The objectives of files: of what they decode to, (B, C, h, w) at `stride` pixels to a position, and of their
        real sizes."""
        distortion = torch.zeros(len(files), dtype=torch.float64)
        for tile in self.tiles:
            rows, columns = (slice(own.start // stride, math.ceil(own.stop / stride)) for own in tile.image)
            distortion += tile.share * tile.distortion(decoded[..., rows, columns]).cpu()
        bpp = [8 * len(data) / self.pixels for data in files]
        return [self.weight * d + rate for d, rate in zip(distortion.tolist(), bpp, strict=True)]
