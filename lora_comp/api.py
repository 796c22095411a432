"""encode and decode: an image to the bytes of a file, and back.

image -> codec.latents -> method.prepare -> adapted.fit(objective) -> codec.coder().compress -> bitstream.write
      -> bitstream.read -> method.restore -> coder().decompress -> codec.synthesize -> image
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_comp import bitstream
from lora_comp.codecs import load_codec
from lora_comp.entropy.coder import CodedLatents
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods import NONE, STEPS, Adapted, FitSettings, Method, load_method, method_of_file
from lora_comp.objective import TILE, Distortion, Objective, tiles
from lora_comp.roi import quiet, within

OnStep = Callable[[int, float], None]
_loaded = lru_cache(maxsize=8)(load_codec)


@dataclass(frozen=True)
class Coded:
    """A coded image.

    data: the whole file. bpp: its bits over the image's pixels. method: "none" where adapting did not pay.
    loss_before, loss_after: weight x distortion + bpp of the plain file and of this one, both decoded; None without a
        task, loss_before also for a method without a plain counterpart (`Method.guarded`).
    """

    data: bytes
    bpp: float
    method: str
    loss_before: float | None = None
    loss_after: float | None = None


def pad(images: Tensor, stride: int) -> Tensor:
    """Pad (B, 3, H, W) on the right and below, by repeating the border, to sides that are multiples of `stride`."""
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), mode="replicate")


def encode(
    image: Tensor,
    codec: Any,
    task: Any = None,
    method: str | Method | None = "svd_lora",
    steps: int = STEPS,
    lr: float | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    recipe: str = "latents",
    roi: Tensor | None = None,
    tile: int = TILE,
) -> Coded:
    """Code an image, adapted to itself and to a task.

    Never worse than not adapting, for a method that has a plain counterpart: both files are decoded, and the one of
    lower objective is returned. The distortion of an image of more than `tile` rows or columns is the mean of that of
    its tiles (`objective.tiles`).

    Args:
        image: float32 (3, H, W) in [0, 1].
        codec: from `load_codec`.
        task: from `load_task`; may be None with the method "none".
        method: "svd_lora", "lora", "none", or a method from `load_method`.
        steps, lr, seed: see `methods.FitSettings`; lr None is the task's own.
        on_step: called with each step and the objective before it.
        recipe: what the encoder optimises beside what is transmitted. Of svd_lora and lora, "latents": those of the
            image; "adapter": the encoder's adapter, in memory that grows with the image; "published": the same by the
            published optimiser, whose steps=40 and lr=5e-3.
        roi: how much each pixel counts, float (H, W) in [0, 1]; None: all alike. See `roi.region`.
        tile: the longest side of what the task sees at once, pixels, a multiple of 128. The image has one adapter and
            one file all the same. 256: as published for detection.
    Raises:
        LoraCompError: an image of another shape, type or range, an unknown recipe, a region or a tile that does not
            fit, or a method without a task.
    """
    settings = FitSettings(steps, lr, seed, recipe, tile)
    return encode_images([image], codec, task, method, settings, None if roi is None else [roi], on_step)[0]


def encode_batch(
    images: Sequence[Tensor] | Tensor,
    codec: Any,
    task: Any = None,
    method: str | Method | None = "svd_lora",
    steps: int = STEPS,
    lr: float | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    recipe: str = "latents",
    rois: Sequence[Tensor] | None = None,
    tile: int = TILE,
) -> list[Coded]:
    """`encode` of each image, their steps taken together: as good as alone, and faster where a GPU has room.

    Each image has its own latents, adapter and best step. Sums may come in another order than alone, so a value midway
    between two integers may be rounded to the other one. Memory grows with the number of images.

    Args:
        images: float32 (3, H, W) in [0, 1] each and of one size, or (B, 3, H, W).
        codec, task, method, steps, lr, seed, recipe, tile: as for `encode`.
        on_step: called with each step and the mean of the objectives before it.
        rois: of each image, as for `encode`.
    Raises:
        LoraCompError: as for `encode`, and images of different sizes or none.
    """
    return encode_images(images, codec, task, method, FitSettings(steps, lr, seed, recipe, tile), rois, on_step)


def encode_images(
    images: Sequence[Tensor] | Tensor,
    codec: Any,
    task: Any,
    method: str | Method | None,
    settings: FitSettings,
    rois: Sequence[Tensor] | None = None,
    on_step: OnStep | None = None,
) -> list[Coded]:
    """`encode_batch` with its settings in one piece."""
    originals = _stacked(images, codec)
    size = originals.shape[2], originals.shape[3]
    if isinstance(method, str):
        method = load_method(method, codec, task and task.key)
    if task is None:
        if method is not None:
            raise LoraCompError("adapting needs a task: give one, or method='none'")
        return [Coded(data, bpp(data, size), NONE) for data in _plain(codec, pad(originals, codec.stride), size)]
    objective, x = _objective(originals, codec, task, settings.tile, rois)
    coded: list[Coded] = []
    if method is None or method.guarded:
        files = _plain(codec, objective.x, size)
        losses = objective.of_files(_decoded(files, codec, None), files, codec.output.stride)
        coded = [Coded(data, bpp(data, size), NONE, loss, loss) for data, loss in zip(files, losses, strict=True)]
    if method is None:
        return coded
    objective = replace(objective, x=x)
    adapted = method.prepare(codec, x, settings)
    adapted.fit(objective, replace(settings, lr=settings.lr or task.lr), on_step)
    with torch.no_grad():
        files = write(codec, adapted.latents(x), size, method, adapted)
    losses = objective.of_files(_decoded(files, codec, method), files, adapted.codec.output.stride)
    befores = [one.loss_before for one in coded] or [None] * len(files)
    made = [
        Coded(data, bpp(data, size), method.name, before, loss)
        for data, before, loss in zip(files, befores, losses, strict=True)
    ]
    return [new if _lower(new, old) else old for old, new in zip(coded, made, strict=True)] if coded else made


def _lower(one: Coded, other: Coded) -> bool:
    return one.loss_after is not None and other.loss_after is not None and one.loss_after < other.loss_after


@torch.no_grad()
def _plain(codec: Any, x: Tensor, size: tuple[int, int]) -> list[bytes]:
    return write(codec, codec.latents(x), size)


def _stacked(images: Sequence[Tensor] | Tensor, codec: Any) -> Tensor:
    for image in images:
        check(image)
    if len({image.shape for image in images}) != 1:
        sizes = " and ".join(sorted({f"{image.shape[1]}x{image.shape[2]}" for image in images}))
        raise LoraCompError(f"a batch needs images of one size, not of {sizes or 'none'}: encode them separately")
    device = next(codec.parameters()).device
    return torch.stack([image.to(device, torch.float32) for image in images])


def _objective(
    originals: Tensor, codec: Any, task: Any, tile: int, rois: Sequence[Tensor] | None
) -> tuple[Objective, Tensor]:
    """The objective of images, and what a method analyses in their place: with regions of interest, a quieter one."""
    if rois is not None and codec.output.features is not None:
        raise LoraCompError(f"roi= needs a codec that decodes to an image, not to features of {codec.output.features}")
    regions = None if rois is None else _regions(rois, originals)

    def distortion_of(rows: slice, columns: slice) -> Distortion:
        original = originals[..., rows, columns]
        distortion = partial(task.distortion, targets=task.targets(original))
        return distortion if regions is None else within(distortion, original, regions[..., rows, columns])

    size = originals.shape[2], originals.shape[3]
    objective = Objective(
        pad(originals, codec.stride), size, tiles(size, codec, distortion_of, tile), task.weight(codec.quality)
    )
    return objective, objective.x if regions is None else pad(quiet(originals, regions), codec.stride)


def check(image: Tensor) -> None:
    """Raises LoraCompError for a tensor that is not an image."""
    if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point() or 0 in image.shape:
        raise LoraCompError(f"image must be a float tensor of shape (3, H, W), not {tuple(image.shape)}, {image.dtype}")
    if not ((image >= 0) & (image <= 1)).all():
        raise LoraCompError("image must lie in [0, 1]: scale it, clamp it, and replace what is not a number")


def bpp(data: bytes, size: tuple[int, int]) -> float:
    """Bits of a file over the pixels of an image of `size` (H, W)."""
    return 8 * len(data) / (size[0] * size[1])


def _regions(rois: Sequence[Tensor], originals: Tensor) -> Tensor:
    """Regions of interest of images (B, 3, H, W) as one tensor (B, 1, H, W)."""
    size, sizes = tuple(originals.shape[2:]), {tuple(roi.shape) for roi in rois}
    if len(rois) != len(originals) or sizes != {size}:
        raise LoraCompError(
            f"a region of interest is (H, W) like its image, {size}, not {' and '.join(map(str, sorted(sizes)))}"
        )
    weights = torch.stack(list(rois))[:, None].to(originals)
    if not (weights.min() >= 0 and weights.max() <= 1):
        raise LoraCompError("a region of interest has weights from 0 to 1")
    return weights


@torch.no_grad()
def write(
    codec: Any,
    latents: Mapping[str, Tensor],
    size: tuple[int, int],
    method: Method | None = None,
    adapted: Adapted | None = None,
) -> list[bytes]:
    """The files of images of `size` (H, W) with these latents, plain or as `adapted` by a method."""
    decoder = codec if adapted is None else adapted.codec
    payloads = [None] * len(latents["y"]) if adapted is None else adapted.payloads()
    files = []
    for i, payload in enumerate(payloads):
        coded = decoder.coder().compress({name: value[i : i + 1] for name, value in latents.items()})
        header = bitstream.Header(
            height=size[0],
            width=size[1],
            codec=codec.name,
            quality=codec.quality,
            codec_hash=codec.hash,
            symbols_crc=coded.symbols_crc,
            method=method.name if method else NONE,
            adapter_hash=method.identity if method else None,
            features=decoder.output.features,
        )
        files.append(bitstream.write(header, bitstream.Sections(coded.sections, payload, coded.hints)))
    return files


def _decoded(files: Sequence[bytes], codec: Any, method: Method | None) -> Tensor:
    return torch.stack([decode(data, codec, method=method) for data in files])


@torch.no_grad()
def decode(
    data: bytes,
    codec: Any = None,
    method: Method | None = None,
    adapter: str | Path | None = None,
    max_pixels: int = bitstream.MAX_PIXELS,
) -> Tensor:
    """What a file decodes to: an image, float32 (3, H, W) in [0, 1], or the features that its codec gives, (C, h, w).

    Args:
        codec: the codec that wrote the file, where it is not one in the package.
        method: the method that wrote it, where it is at hand already.
        adapter: path of a pre-trained adapter that is not in the package.
        max_pixels: of the largest image to decode; a larger one is refused before anything is allocated for it.
    Raises:
        BitstreamError: the file is not whole, or was written with weights that are not at hand.
    """
    header, sections = bitstream.read(data, max_pixels)
    codec = codec_of_file(header, codec)
    if header.method != NONE:
        if method is None or (method.name, method.identity) != (header.method, header.adapter_hash):
            method = method_of_file(header.method, header.adapter_hash, codec, adapter)
        codec = method.restore(codec, sections.payload)
    if codec.output.features != header.features:
        held, made = header.features or "an image", codec.output.features or "an image"
        raise BitstreamError(f"the file holds {held}, its codec decodes to {made}")
    size = header.height, header.width
    y_hat = codec.coder().decompress(CodedLatents(sections.latents, header.symbols_crc, sections.hints), size)
    output = codec.synthesize(y_hat.to(next(codec.parameters()).device))
    return codec.output.crop(output, size)[0].contiguous()


def codec_of_file(header: bitstream.Header, codec: Any) -> Any:
    if codec is None:
        try:
            codec = _loaded(header.codec, header.quality)
        except LoraCompError as error:
            raise BitstreamError(f"the file's codec cannot be loaded: {error}") from None
    if codec.hash != header.codec_hash:
        raise BitstreamError(
            f"the file was written with other weights of {header.codec} quality {header.quality:g} "
            f"({header.codec_hash.hex()}) than are here ({codec.hash.hex()})"
        )
    return codec
