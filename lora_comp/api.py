"""Encoding of images to the bytes of a file, and decoding.

image -> codec.latents -> method.prepare -> adapted.fit(objective) -> codec.coder().compress -> bitstream.write
      -> bitstream.read -> method.restore -> coder().decompress -> codec.synthesize -> image
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lora_comp import bitstream
from lora_comp.data.images import to_batch
from lora_comp.decoding import context, opened
from lora_comp.errors import LoraCompError
from lora_comp.files import contents
from lora_comp.methods import NONE, STEPS, Adapted, Annealed, FitSettings, Method, annealed, load_method
from lora_comp.objective import TILE, Distortion, Objective, tiles
from lora_comp.qualities import moved, mover, quality_of
from lora_comp.roi import masked_distortion, regions, simplify_background
from lora_comp.target import Search, Target, ends_for, meet, nearer_means, target_of
from lora_comp.tasks.human import psnr as psnr_of

OnStep = Callable[[int, float], None]
AnyImage = Tensor | np.ndarray | Image.Image | str | Path


@dataclass(frozen=True)
class Coded:
    """An encoded image.

    data: the file.
    bpp: bits of the file per pixel of the image.
    method: the method of the file; "none" if the plain file has the lower objective.
    loss_before, loss_after: weight x distortion + bpp of the plain file and of this one, both decoded. None without a
        task; loss_before also None for a method that is not guarded (`Method.guarded`), and of the base's file for one
        that stands on a base. With a target, the plain file is one that meets it too.
    """

    data: bytes
    bpp: float
    method: str
    loss_before: float | None = None
    loss_after: float | None = None

    @property
    def quality(self) -> float:
        """That of the file: the codec's, or the one that a target led to."""
        return bitstream.info(self.data)["quality"]


def pad(images: Tensor, stride: int) -> Tensor:
    """Pad (B, 3, H, W) at the right and bottom to multiples of `stride` by replicating the border."""
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), mode="replicate")


def encode(
    image: AnyImage,
    codec: Any,
    task: Any = None,
    method: str | Method | None = "svd_lora",
    steps: int = STEPS,
    lr: float | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    recipe: str = "latents",
    roi: AnyImage | None = None,
    tile: int = TILE,
    refine: int = 0,
    bpp: float | None = None,
    bytes: int | None = None,
    psnr: float | None = None,
    max_bytes: int | None = None,
) -> Coded:
    """Encode an image with a codec adapted to the image and to a task.

    For a guarded method (`Method.guarded`) the plain file is encoded too, both are decoded, and the file of lower
    objective is returned; for one that stands on a base, `load_method(..., base=FILE)`, it is the file of the base
    alone. An image of more than `tile` rows or columns is processed in tiles (`objective.tiles`); it still has one
    adapter and one file. The contexts of PyTorch around the call (no_grad, inference_mode, autocast) have no effect.

    Args:
        image: float (3, H, W) in [0, 1]. Or a NumPy array (H, W), (H, W, 3) or (H, W, 4) of uint8, uint16, or floats in
            [0, 1]; a PIL image; a path: see `to_image`.
        codec: from `load_codec`.
        task: from `load_task`; may be None with the method "none".
        method: "svd_lora", "lora", "none", or a method from `load_method`.
        steps, lr, seed: see `methods.FitSettings`; lr None is the task's default.
        on_step: called with the number of steps taken and the objective.
        recipe: what the encoder optimises besides the transmitted updates. For svd_lora and lora, "latents": the
            latents of the image; "adapter": the encoder's adapter, whose memory grows with the image; "published": the
            same with the published optimiser, for which steps=40 and lr=5e-3 were published.
        roi: weights of the pixels, float (H, W) in [0, 1]; None for equal weights. Or a mask in any of the forms of
            an image, white where pixels count: see `read_mask` and `roi.region`.
        tile: maximal side of a tile in pixels, a multiple of 128. 256 is published for detection.
        refine: steps of annealed rounding that refine the latents y and z after the method's own steps, with the method
            "none" too (`methods.annealing`). The file is an ordinary one. A number of steps, as the papers give it,
            since time depends on the machine and results must not: 100 take ten seconds of one core at 256x256 and
            have two thirds of the gain of 1000 (docs/refinement.md).
        bpp, bytes, psnr: at most one of them, in place of the quality of a codec or a method of variable rate: the
            size of the file within 2 %, or the PSNR of the decoded image within 0.1 dB. Of what cannot be met, the
            nearest file with a `LoraCompWarning`. An adapted file takes two fits, seldom up to four (docs/rate.md).
        max_bytes: a size that the file never exceeds. Alone: the codec's quality, or the best lower one that fits.
    Raises:
        LoraCompError: an image of wrong shape, dtype or range, an unknown recipe, an invalid region or tile, a negative
            number of steps of refinement, a method or refinement without a task, two targets, one for a codec of fixed
            rates, or a max_bytes that no file meets.
    """
    settings, target = FitSettings(steps, lr, seed, recipe, tile), target_of(bpp, bytes, psnr, max_bytes)
    rois = None if roi is None else [roi]
    return encode_images([image], codec, task, method, settings, rois, on_step, refine, target)[0]


def encode_batch(
    images: Sequence[AnyImage] | Tensor | np.ndarray,
    codec: Any,
    task: Any = None,
    method: str | Method | None = "svd_lora",
    steps: int = STEPS,
    lr: float | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    recipe: str = "latents",
    rois: Sequence[AnyImage] | None = None,
    tile: int = TILE,
    refine: int = 0,
    bpp: float | None = None,
    bytes: int | None = None,
    psnr: float | None = None,
    max_bytes: int | None = None,
) -> list[Coded]:
    """`encode` for several images of one size, optimised in one batch, which is faster on a GPU.

    Each image has its own latents, adapter and best step. Results equal those of `encode` up to the order of float32
    sums, which may change the rounding of a symbol. Memory grows with the number of images.

    Args:
        images: float (3, H, W) in [0, 1] each, of one size, or (B, 3, H, W); or other forms of images, see `encode`.
        codec, task, method, steps, lr, seed, recipe, tile, refine: see `encode`.
        on_step: called with the number of steps taken and the mean objective.
        rois: weights for each image, see `encode`.
        bpp, bytes, psnr, max_bytes: of each image, see `encode`. Images then differ in quality and are fitted alone.
    Raises:
        LoraCompError: as `encode`; no images, or images of different sizes.
    """
    settings, target = FitSettings(steps, lr, seed, recipe, tile), target_of(bpp, bytes, psnr, max_bytes)
    return encode_images(images, codec, task, method, settings, rois, on_step, refine, target)


@context(gradients=True)
def encode_images(
    images: Sequence[AnyImage] | Tensor | np.ndarray,
    codec: Any,
    task: Any,
    method: str | Method | None,
    settings: FitSettings,
    rois: Sequence[AnyImage] | None = None,
    on_step: OnStep | None = None,
    refine: int = 0,
    target: Target | None = None,
    trim: Callable[[Callable[[float], bytes]], bytes] | None = None,
) -> list[Coded]:
    """`encode_batch` with its settings as objects. trim: of the adapted file of one image, see `target.Search`."""
    originals = to_batch(images, next(codec.parameters()).device)
    size = originals.shape[2], originals.shape[3]
    if isinstance(method, str):
        method = load_method(method, codec, task and task.key)
    method = annealed(method, refine)
    if target is not None:
        each = [None] * len(originals) if rois is None else [list(weights) for weights in regions(rois, originals)]
        pairs = zip(originals, each, strict=True)
        return [_meet(target, one, codec, task, method, settings, roi, on_step) for one, roi in pairs]
    if task is None:
        if refine:
            raise LoraCompError("refinement needs a task: give one, such as human, or refine=0")
        if method is not None:
            raise LoraCompError("adaptation needs a task: give one, or method='none'")
        return [Coded(data, bpp(data, size), NONE) for data in _plain(codec, pad(originals, codec.stride), size)]
    objective, x = _objective(originals, codec, task, quality_of(codec, method), settings.tile, rois)
    coded: list[Coded] = []
    base = getattr(method, "base", None)
    if base is not None:
        alone = encode_images(originals, codec, task, base, settings, rois)
        coded = [replace(one, loss_before=one.loss_after) for one in alone]
    elif method is None or method.guarded:
        files = _plain(codec, objective.x, size)
        losses = objective.of_files(_decoded(files, codec, None), files, codec.output.stride)
        coded = [Coded(data, bpp(data, size), NONE, loss, loss) for data, loss in zip(files, losses, strict=True)]
    if method is None:
        return coded
    objective = replace(objective, x=x)
    adapted = method.prepare(codec, x, settings)
    adapted.fit(objective, replace(settings, lr=settings.lr or task.lr), on_step)
    if isinstance(method, Annealed):  # of which decoders know nothing
        method = method.method
    with torch.no_grad():
        latents = adapted.latents(x)
        if trim is None:
            files = write(codec, latents, size, method, adapted)
        else:
            moved = partial(nearer_means, adapted.codec, latents)
            files = [trim(lambda by: write(codec, moved(by), size, method, adapted)[0])]
    losses = objective.of_files(_decoded(files, codec, method), files, adapted.codec.output.stride)
    befores = [one.loss_before for one in coded] or [None] * len(files)
    made = [
        Coded(data, bpp(data, size), method.name if method else NONE, before, loss)
        for data, before, loss in zip(files, befores, losses, strict=True)
    ]
    return [new if _lower(new, old) else old for old, new in zip(coded, made, strict=True)] if coded else made


def _meet(
    target: Target,
    image: Tensor,
    codec: Any,
    task: Any,
    method: Method | None,
    settings: FitSettings,
    rois: Sequence[Tensor] | None,
    on_step: OnStep | None,
) -> Coded:
    """The file of an image (3, H, W) that meets a target."""
    ends = ends_for(target, codec, method)
    size, x = (image.shape[1], image.shape[2]), pad(image[None], codec.stride)
    unfitted, psnr = mover(method), lambda data: psnr_of(decode(data, codec, method), image)
    unscaled = None if unfitted else torch.no_grad()(codec.unscaled)(x)

    @torch.no_grad()
    def plain(quality: float) -> bytes:
        at, moving = moved(codec, unfitted, quality)
        if moving is None:
            return write(at, at.latents_from(at.scaled(unscaled)), size)[0]
        adapted = moving.prepare(at, x, settings)
        return write(at, adapted.latents(x), size, moving, adapted)[0]

    def encode_at(quality: float, method: Method | None) -> Coded:
        at, moving = moved(codec, method, quality)
        trim = None if method is unfitted else search.trim
        return encode_images([image], at, task, moving, settings, rois, on_step, trim=trim)[0]

    search = Search(target, ends, quality_of(codec, method), size[0] * size[1], plain, psnr)
    fit = None if method is unfitted else partial(encode_at, method=method)
    return meet(search, partial(encode_at, method=unfitted), fit, task and task.weight)


def _lower(one: Coded, other: Coded) -> bool:
    return one.loss_after is not None and other.loss_after is not None and one.loss_after < other.loss_after


@torch.no_grad()
def _plain(codec: Any, x: Tensor, size: tuple[int, int]) -> list[bytes]:
    return write(codec, codec.latents(x), size)


def _objective(
    originals: Tensor, codec: Any, task: Any, quality: float, tile: int, rois: Sequence[AnyImage] | None
) -> tuple[Objective, Tensor]:
    """The objective of images at a quality, and the input of the encoder, whose background is simplified outside of
    regions."""
    if rois is not None and codec.output.features is not None:
        raise LoraCompError(f"roi= needs a codec that decodes to an image, not to features of {codec.output.features}")
    weights = None if rois is None else regions(rois, originals)

    def distortion_of(rows: slice, columns: slice) -> Distortion:
        original = originals[..., rows, columns]
        distortion = partial(task.distortion, targets=task.targets(original))
        return distortion if weights is None else masked_distortion(distortion, original, weights[..., rows, columns])

    size = originals.shape[2], originals.shape[3]
    objective = Objective(
        pad(originals, codec.stride), size, tiles(size, codec, distortion_of, tile), task.weight(quality)
    )
    return objective, objective.x if weights is None else pad(simplify_background(originals, weights), codec.stride)


def bpp(data: bytes, size: tuple[int, int]) -> float:
    """Bits of a file per pixel of an image of `size` (H, W)."""
    return 8 * len(data) / (size[0] * size[1])


@torch.no_grad()
def write(
    codec: Any,
    latents: Mapping[str, Tensor],
    size: tuple[int, int],
    method: Method | None = None,
    adapted: Adapted | None = None,
) -> list[bytes]:
    """The files of images of `size` (H, W) with these latents, plain or with the updates of `adapted`."""
    decoder = codec if adapted is None else adapted.codec
    payloads = [None] * len(latents["y"]) if adapted is None else adapted.payloads()
    base = getattr(method, "base", None)
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
            base=None if base is None else (base.name, base.identity),
        )
        files.append(bitstream.write(header, bitstream.Sections(coded.sections, payload, coded.hints)))
    return files


def _decoded(files: Sequence[bytes], codec: Any, method: Method | None) -> Tensor:
    return torch.stack([decode(data, codec, method=method) for data in files])


@context(gradients=False)
def decode(
    data: bytes | str | Path | Coded,
    codec: Any = None,
    method: Method | str | None = None,
    adapter: str | Path | None = None,
    max_pixels: int = bitstream.MAX_PIXELS,
    base: str | Path | None = None,
) -> Tensor:
    """Decode a file to an image, float32 (3, H, W) in [0, 1], or to features (C, h, w) if its codec outputs those.

    Args:
        data: the bytes of the file, its path, or what `encode` returned.
        codec: the codec that wrote the file; None to load it from the package.
        method: the method that wrote the file; None to load it by the name in the file; "none" for the plain codec,
            which shows what an adapted file has for people.
        adapter: path of a pre-trained adapter that is not in the package.
        max_pixels: larger images are rejected before memory is allocated for them.
        base: path of the adapter that the method of the file stands on (`method.base`). Also for a file of that adapter
            alone, which `encode` writes where it has the lower objective.
    Raises:
        BitstreamError: the file is corrupt, too large, or needs weights that are not available.
        LoraCompError: the path cannot be read, or a method is another text than "none".
    """
    file = opened(_bytes(data), codec, method, adapter, max_pixels, base)
    y_hat = file.codec.coder().decompress(file.latents, file.size)
    output = file.codec.synthesize(y_hat.to(next(file.codec.parameters()).device))
    return file.codec.output.crop(output, file.size)[0].contiguous()


@context(gradients=False)
def bit_map(data: bytes | str | Path | Coded, codec: Any = None, max_pixels: int = bitstream.MAX_PIXELS) -> np.ndarray:
    """Where the bits of a file's latents go: float32 (h, w), their ideal code length at each position of y in bits.

    A position of y is `codec.latent_stride` pixels high and wide; the map covers the image padded to multiples of
    `codec.stride`. Bits of z are shared evenly among the positions of y under it. The sum is the size of the sections
    of latents but for the coder's overhead, of a few bytes each; other parts of the file have no place. No method
    changes the entropy model, so an adapted file needs no adapter here.

    Args:
        data, codec, max_pixels: see `decode`.
    Raises:
        BitstreamError, LoraCompError: as `decode`; a codec whose coder has no `bits`.
    """
    file = opened(_bytes(data), codec, NONE, None, max_pixels)
    coder = file.codec.coder()
    if not hasattr(coder, "bits"):
        raise LoraCompError(f"the codec {file.codec.name} does not say where its bits go")
    return coder.bits(file.latents, file.size).numpy()


def _bytes(data: bytes | str | Path | Coded) -> bytes:
    return data.data if isinstance(data, Coded) else contents(data)
