"""encode and decode: an image to the bytes of a file, and back."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_comp import bitstream, ttft
from lora_comp.codecs import Codec, load_codec
from lora_comp.codecs.tic import STRIDE
from lora_comp.entropy.latents import CodedLatents, LatentCoder
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods import LowRank, load_method, method_of_file
from lora_comp.parts import SIDE, Distortion, in_parts
from lora_comp.roi import quiet, within

_coders: weakref.WeakKeyDictionary[Codec, LatentCoder] = weakref.WeakKeyDictionary()
_loaded = lru_cache(maxsize=8)(load_codec)


@dataclass(frozen=True)
class Coded:
    """A coded image.

    data: the whole file. bpp: its bits over the image's pixels. method: "none" where adapting did not pay.
    loss_before, loss_after: weight x distortion + bpp of the plain file and of this one, both decoded; None without
    a task.
    """

    data: bytes
    bpp: float
    method: str
    loss_before: float | None = None
    loss_after: float | None = None


def coder_of(codec: Codec) -> LatentCoder:
    if codec not in _coders:
        _coders[codec] = LatentCoder(codec)
    return _coders[codec]


def pad(images: Tensor) -> Tensor:
    """Pad (B, 3, H, W) on the right and below, by repeating the border, to sides that are multiples of 64."""
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")


def encode(
    image: Tensor,
    codec: Codec,
    task=None,
    method: str | LowRank | None = "svd_lora",
    steps: int = ttft.STEPS,
    lr: float | None = None,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
    recipe: str = "latents",
    roi: Tensor | None = None,
    tile: int = SIDE,
) -> Coded:
    """Code an image, adapted to itself and to a task.

    Never worse than not adapting: both files are decoded, and the one of lower objective is returned. The distortion of
    an image of more than `tile` rows or columns is the mean of that of its tiles (`parts.in_parts`).

    Args:
        image: float32 (3, H, W) in [0, 1].
        codec: from `load_codec`.
        task: from `load_task`; may be None with the method "none".
        method: "svd_lora", "lora", "none", or a method from `load_method`.
        steps, lr, seed, on_step: see `ttft.fit`; lr None is the task's own.
        recipe: what the encoder trains beside what travels. "latents": those of the image. "adapter": the encoder's
            adapter, in memory that grows with the image. "published": the same by the published optimiser, whose
            steps=40 and lr=5e-3.
        roi: how much each pixel counts, float (H, W) in [0, 1]; None: all alike. See `roi.region`.
        tile: the longest side of what the task sees at once, pixels, a multiple of 128. The image has one adapter and
            one file all the same. 256: as published for detection.
    Raises:
        LoraCompError: an image of another shape, type or range, an unknown recipe, a region or a tile that does not
            fit, or a method without a task.
    """
    rois = None if roi is None else [roi]
    return encode_batch([image], codec, task, method, steps, lr, seed, on_step, recipe, rois, tile)[0]


def encode_batch(
    images: Sequence[Tensor] | Tensor,
    codec: Codec,
    task=None,
    method: str | LowRank | None = "svd_lora",
    steps: int = ttft.STEPS,
    lr: float | None = None,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
    recipe: str = "latents",
    rois: Sequence[Tensor] | None = None,
    tile: int = SIDE,
) -> list[Coded]:
    """`encode` of each image, their steps taken together: as good as alone, and faster where a GPU has room.

    Each image has its own latents, adapter and best step. Sums may come in another order than alone, so a value that
    lies between two whole numbers may be rounded to the other one. Memory grows with the number of images.

    Args:
        images: float32 (3, H, W) in [0, 1] each and of one size, or (B, 3, H, W).
        codec, task, method, steps, lr, seed, recipe, tile: as for `encode`.
        on_step: told the step and the mean of the objectives.
        rois: of each image, as for `encode`.
    Raises:
        LoraCompError: as for `encode`, and images of different sizes or none.
    """
    for image in images:
        check(image)
    if len({image.shape for image in images}) != 1:
        sizes = " and ".join(sorted({f"{image.shape[1]}x{image.shape[2]}" for image in images}))
        raise LoraCompError(f"a batch needs images of one size, not of {sizes or 'none'}: encode them apart")
    if recipe not in ttft.RECIPES:
        raise LoraCompError(f"recipe must be one of {', '.join(ttft.RECIPES)}, not {recipe!r}")
    if isinstance(method, str):
        method = load_method(method, codec, task and task.key)
    originals = torch.stack([image.to(next(codec.parameters()).device, torch.float32) for image in images])
    x, size = pad(originals), (originals.shape[2], originals.shape[3])
    plain = write(codec, codec, x, size)
    if task is None:
        if method is not None:
            raise LoraCompError("adapting needs a task: give one, or method='none'")
        return [Coded(data, bpp(data, size), "none") for data in plain]
    weight = task.weight(codec.quality)
    regions = None if rois is None else _regions(rois, originals)

    def distance_from(rows: slice, columns: slice) -> Distortion:
        original = originals[..., rows, columns]
        distortion = partial(task.distortion, targets=task.targets(original))
        return distortion if regions is None else within(distortion, original, regions[..., rows, columns])

    parts = in_parts(size, distance_from, tile)

    @torch.no_grad()
    def objectives(files: list[bytes]) -> list[float]:
        decoded = torch.stack([decode(data, codec, method=method) for data in files])
        distances = torch.zeros(len(files), dtype=torch.float64)
        for part in parts:
            rows, columns = part.image
            distances += part.share * part.distortion(decoded[..., rows, columns]).cpu()
        return [weight * d + bpp(data, size) for d, data in zip(distances.tolist(), files, strict=True)]

    before = objectives(plain)
    coded = [Coded(data, bpp(data, size), "none", loss, loss) for data, loss in zip(plain, before, strict=True)]
    if method is None:
        return coded
    if regions is not None:
        x = pad(quiet(originals, regions))
    latents = recipe == "latents"
    adapted = method.prepare(codec, x if latents else None, len(x))
    ttft.fit(adapted, x, size, parts, weight, steps, lr or task.lr, seed, on_step, recipe == "published")
    ttft.refine(adapted, x, size, parts, weight, attempts=1 if latents else ttft.ATTEMPTS)
    files = write(codec, adapted.codec, x, size, method, adapted.payloads())
    for i, (data, after) in enumerate(zip(files, objectives(files), strict=True)):
        if after < before[i]:
            coded[i] = Coded(data, bpp(data, size), method.name, before[i], after)
    return coded


def check(image: Tensor) -> None:
    """Raise LoraCompError for what is no image."""
    if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point() or 0 in image.shape:
        raise LoraCompError(f"image must be a float tensor of shape (3, H, W), not {tuple(image.shape)}, {image.dtype}")
    if not ((image >= 0) & (image <= 1)).all():
        raise LoraCompError("image must lie in [0, 1]: scale it, clamp it, and mind what is not a number")


def bpp(data: bytes, size: tuple[int, int]) -> float:
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
    codec: Codec,
    analysis: Codec,
    x: Tensor,
    size: tuple[int, int],
    method: LowRank | None = None,
    payloads: Sequence[bytes] | None = None,
) -> list[bytes]:
    """The files of x (B, 3, H', W') as the transforms of `analysis`, plain or adapted, see it."""
    y = analysis.g_a(x.contiguous(memory_format=torch.channels_last))
    z = codec.h_a(y)
    files = []
    for i in range(len(x)):
        latents = coder_of(codec).compress(y[i : i + 1], z[i : i + 1])
        header = bitstream.Header(
            *size,
            codec.name,
            codec.quality,
            codec.hash,
            latents.symbols_crc,
            method.name if method else "none",
            method.adapter.identity if method else None,
            hints=bool(latents.hints),
        )
        sections = [latents.z, latents.y, *(payloads[i : i + 1] if payloads else ()), *filter(None, [latents.hints])]
        files.append(bitstream.write(header, sections))
    return files


@torch.no_grad()
def decode(
    data: bytes,
    codec: Codec | None = None,
    method: LowRank | None = None,
    adapter: str | Path | None = None,
    max_pixels: int = bitstream.MAX_PIXELS,
) -> Tensor:
    """The image in a file: float32 (3, H, W) in [0, 1].

    Args:
        codec: the codec that wrote the file, where it is not one that ships.
        method: the method that wrote it, where it is at hand already.
        adapter: path of a pre-trained adapter that does not ship.
        max_pixels: of the largest image to decode; a larger one is refused before anything is allocated for it.
    Raises:
        BitstreamError: the file is not whole, or was written with weights that are not at hand.
    """
    header, sections = bitstream.read(data, max_pixels)
    codec = codec_of_file(header, codec)
    height, width = (-(-side // STRIDE) for side in (header.height, header.width))
    y_hat = coder_of(codec).decompress(
        CodedLatents(sections[0], sections[1], header.symbols_crc, sections[-1] if header.hints else b""), height, width
    )
    g_s = codec.g_s
    if header.method != "none":
        if header.adapter_hash is None:
            raise BitstreamError("the file is adapted but names no adapter")
        if method is None or (method.name, method.adapter.identity) != (header.method, header.adapter_hash):
            method = method_of_file(header.method, header.adapter_hash, codec, adapter)
        g_s = method.restore(codec, sections[2])
    device = next(codec.parameters()).device
    x_hat = g_s(y_hat.to(device).contiguous(memory_format=torch.channels_last))
    return x_hat[0, :, : header.height, : header.width].clamp(0, 1).contiguous()


def codec_of_file(header: bitstream.Header, codec: Codec | None) -> Codec:
    if codec is None:
        try:
            codec = _loaded(header.codec, header.quality)
        except LoraCompError as error:
            raise BitstreamError(f"the file's codec cannot be loaded: {error}") from None
    if codec.hash != header.codec_hash:
        raise BitstreamError(
            f"the file was written with other weights of {header.codec} quality {header.quality} "
            f"({header.codec_hash.hex()}) than are here ({codec.hash.hex()})"
        )
    return codec
