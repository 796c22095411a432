"""Classic codecs on the same images, by Pillow's encoders: bytes of real files, and PSNR of what they decode to.

The settings are those a user would pick: JPEG with 4:2:0 chroma and optimised Huffman tables, WebP with its slowest
method, AVIF at Pillow's default speed with 4:2:0, JPEG 2000 with the irreversible wavelet and colour transform, as a
bare codestream.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, features
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from lora_comp.errors import LoraCompError
from lora_comp.report.bdrate import Point, rising


def _jpeg(image: Image.Image, quality: int) -> bytes:
    return _save(image, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)


def _webp(image: Image.Image, quality: int) -> bytes:
    return _save(image, "WEBP", quality=quality, method=6)


def _avif(image: Image.Image, quality: int) -> bytes:
    return _save(image, "AVIF", quality=quality, subsampling="4:2:0")


def _jpeg2000(image: Image.Image, ratio: int) -> bytes:
    resolutions = min(6, min(image.size).bit_length())  # OpenJPEG refuses more than the image can be halved
    return _save(
        image,
        "JPEG2000",
        quality_mode="rates",
        quality_layers=[ratio],
        irreversible=True,
        mct=1,
        num_resolutions=resolutions,
        no_jp2=True,
    )  # mct: Pillow codes RGB without a colour transform unless told


def _save(image: Image.Image, kind: str, **options) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    return encoded.getvalue()


Encoder = Callable[[Image.Image, int], bytes]

# Pillow's encoder and its settings from coarse to fine: qualities, and compression ratios of JPEG 2000.
_CLASSIC: dict[str, tuple[Encoder, tuple[int, ...]]] = {
    "jpeg": (_jpeg, (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)),
    "webp": (_webp, (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)),
    "avif": (_avif, (15, 25, 35, 45, 55, 65, 75, 85)),
    "jpeg2000": (_jpeg2000, (240, 160, 120, 80, 60, 40, 30, 20, 15, 10)),
}


def classic_codecs() -> list[str]:
    """Names of the codecs that this Pillow can write."""
    present = {"jpeg": "jpg", "webp": "webp", "avif": "avif", "jpeg2000": "jpg_2000"}
    return [name for name in _CLASSIC if features.check(present[name])]


def settings(name: str) -> tuple[int, ...]:
    """The settings along the curve of a classic codec, from the lowest rate to the highest."""
    if name not in classic_codecs():
        raise LoraCompError(f"no classic codec {name!r} in this Pillow; there are {', '.join(classic_codecs())}")
    return _CLASSIC[name][1]


def to_bytes(image: Tensor) -> np.ndarray:
    """float (3, H, W) in [0, 1] as a file shows it: uint8 (H, W, 3)."""
    array = image.detach().float().clamp(0, 1).mul(255).round().byte()
    return array.permute(1, 2, 0).contiguous().cpu().numpy()  # (H, W, 3)


def psnr(original: np.ndarray, decoded: np.ndarray) -> float:
    """PSNR in dB over the three channels of two uint8 (H, W, 3) images; inf if they are equal."""
    error = np.mean((original.astype(np.float64) - decoded) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def through(name: str, setting: int, image: Tensor) -> tuple[int, np.ndarray]:
    """One image, float (3, H, W) in [0, 1], through a classic codec and back: bytes, and uint8 (H, W, 3)."""
    data = _CLASSIC[name][0](Image.fromarray(to_bytes(image)), setting)
    with Image.open(io.BytesIO(data)) as decoded:
        return len(data), np.array(decoded.convert("RGB"))


def measure(name: str, setting: int, image: Tensor) -> tuple[int, float]:
    """Bytes and PSNR (dB) of one image, float (3, H, W) in [0, 1], through a classic codec and back."""
    size, decoded = through(name, setting, image)
    return size, psnr(to_bytes(image), decoded)


def mean_point(points: Iterable[Point]) -> Point:
    """Mean bpp and mean PSNR over images at one rate point: the field's way, not bits over pixels in sum."""
    rate, quality = np.mean(list(points), axis=0)
    return float(rate), float(quality)


def anchor_curve(name: str, images: Sequence[Tensor]) -> list[Point]:
    """(bpp, PSNR in dB) of a classic codec, a point per setting, each the mean over `images`.

    images: float (3, H, W) in [0, 1] each. Raises LoraCompError for a codec that this Pillow lacks.
    """
    curve = []
    for setting in settings(name):
        results = [(image, measure(name, setting, image)) for image in images]
        curve.append(mean_point((8 * size / image[0].numel(), quality) for image, (size, quality) in results))
    return curve


def psnr_at(curve: Sequence[Point], bpp: float) -> float:
    """PSNR (dB) of a curve at a rate, interpolated (PCHIP) over log bpp; nan outside the curve."""
    points = rising(point for point in curve if math.isfinite(point[1]))
    if len(points) < 2 or not points[0][0] <= bpp <= points[-1][0]:
        return math.nan
    rates, qualities = np.array(points).T
    return float(PchipInterpolator(np.log(rates), qualities)(math.log(bpp)))


def gains(curve: Sequence[Point], anchors: Mapping[str, Sequence[Point]]) -> list[dict[str, float]]:
    """How many dB each point of a curve lies above each anchor at equal bpp; nan outside the anchor's curve."""
    return [{name: quality - psnr_at(anchor, rate) for name, anchor in anchors.items()} for rate, quality in curve]
