"""Conventional codecs through Pillow's encoders: bytes of real files, and the PSNR of the decoded images.

JPEG uses 4:2:0 chroma and optimised Huffman tables; WebP its slowest method; AVIF 4:2:0 at Pillow's default speed;
JPEG 2000 the irreversible wavelet and colour transform, as a bare codestream. "avif444" is AVIF 4:4:4 at its slowest
speed, which takes ten seconds for a Kodak image.
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, features
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from lora_comp.errors import LoraCompError
from lora_comp.files import read_file
from lora_comp.report.bdrate import Point, pareto_front


def _jpeg(image: Image.Image, quality: int) -> bytes:
    return _save(image, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)


def _webp(image: Image.Image, quality: int) -> bytes:
    return _save(image, "WEBP", quality=quality, method=6)


def _avif(image: Image.Image, quality: int) -> bytes:
    return _save(image, "AVIF", quality=quality, subsampling="4:2:0")


def _avif444(image: Image.Image, quality: int) -> bytes:
    return _save(image, "AVIF", quality=quality, subsampling="4:4:4", speed=0)


def _jpeg2000(image: Image.Image, ratio: int) -> bytes:
    resolutions = min(6, min(image.size).bit_length())  # OpenJPEG rejects more levels than the image can be halved
    return _save(
        image,
        "JPEG2000",
        quality_mode="rates",
        quality_layers=[ratio],
        irreversible=True,
        mct=1,
        num_resolutions=resolutions,
        no_jp2=True,
    )  # mct: Pillow applies no colour transform by default


def _save(image: Image.Image, kind: str, **options) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    return encoded.getvalue()


Encoder = Callable[[Image.Image, int], bytes]

# Encoder and settings from coarse to fine: qualities, and for JPEG 2000 compression ratios.
_CLASSIC: dict[str, tuple[Encoder, tuple[int, ...]]] = {
    "jpeg": (_jpeg, (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)),
    "webp": (_webp, (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)),
    "avif": (_avif, (15, 25, 35, 45, 55, 65, 75, 85)),
    "jpeg2000": (_jpeg2000, (240, 160, 120, 80, 60, 40, 30, 20, 15, 10)),
    "avif444": (_avif444, (15, 25, 35, 45, 55, 65, 75, 85)),
}


SLOW = ("avif444",)


def classic_codecs(slow: bool = False) -> list[str]:
    """Names of the conventional codecs that this build of Pillow can write, the slow ones where they are asked for."""
    present = {"jpeg": "jpg", "webp": "webp", "avif": "avif", "jpeg2000": "jpg_2000", "avif444": "avif"}
    return [name for name in _CLASSIC if features.check(present[name]) and (slow or name not in SLOW)]


def settings(name: str) -> tuple[int, ...]:
    """Encoder settings of a conventional codec, from the lowest rate to the highest.

    Raises LoraCompError for a codec that this build of Pillow cannot write.
    """
    if name not in (known := classic_codecs(slow=True)):
        raise LoraCompError(f"this Pillow has no codec {name!r}; available are {', '.join(known)}")
    return _CLASSIC[name][1]


def to_bytes(image: Tensor) -> np.ndarray:
    """float (3, H, W) in [0, 1] to uint8 (H, W, 3), rounded."""
    array = image.detach().float().clamp(0, 1).mul(255).round().byte()
    return array.permute(1, 2, 0).contiguous().cpu().numpy()  # (H, W, 3)


def psnr(original: np.ndarray, decoded: np.ndarray) -> float:
    """PSNR in dB over the three channels of two uint8 (H, W, 3) images; inf if they are equal."""
    error = np.mean((original.astype(np.float64) - decoded) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def round_trip(name: str, setting: int, image: Tensor) -> tuple[int, np.ndarray]:
    """Encode and decode an image, float (3, H, W) in [0, 1]: size in bytes, and decoded uint8 (H, W, 3)."""
    data = _CLASSIC[name][0](Image.fromarray(to_bytes(image)), setting)
    with Image.open(io.BytesIO(data)) as decoded:
        return len(data), np.array(decoded.convert("RGB"))


def measure(name: str, setting: int, image: Tensor) -> tuple[int, float]:
    """Size in bytes and PSNR in dB of an image, float (3, H, W) in [0, 1], under a conventional codec."""
    size, decoded = round_trip(name, setting, image)
    return size, psnr(to_bytes(image), decoded)


def mean_point(points: Iterable[Point]) -> Point:
    """Mean bpp and mean PSNR of images at one rate point. bpp is averaged per image, as the field reports it."""
    rate, quality = np.mean(list(points), axis=0)
    return float(rate), float(quality)


def anchor_curve(name: str, images: Sequence[Tensor]) -> list[Point]:
    """(bpp, PSNR in dB) of a conventional codec: one point per setting, each a mean over `images`.

    images: float (3, H, W) in [0, 1] each. Raises LoraCompError as `settings` does.
    """
    curve = []
    for setting in settings(name):
        results = [(image, measure(name, setting, image)) for image in images]
        curve.append(mean_point((8 * size / image[0].numel(), quality) for image, (size, quality) in results))
    return curve


def psnr_at(curve: Sequence[Point], bpp: float) -> float:
    """PSNR in dB of a curve at a rate, interpolated (PCHIP) over log bpp; nan outside the curve."""
    points = pareto_front(point for point in curve if math.isfinite(point[1]))
    if len(points) < 2 or not points[0][0] <= bpp <= points[-1][0]:
        return math.nan
    rates, qualities = np.array(points).T
    return float(PchipInterpolator(np.log(rates), qualities)(math.log(bpp)))


def published_curves(path: str) -> dict[str, list[Point]]:
    """Curves of other codecs from a JSON file, {"NAME": {"points": [[bpp, PSNR in dB], ...]}, ...}.

    Raises LoraCompError for a file that is not of this form.
    """
    try:
        content = json.loads(read_file(path))
        curves = {name: [(float(bpp), float(psnr)) for bpp, psnr, *_ in one["points"]] for name, one in content.items()}
        if not all(bpp > 0 and math.isfinite(psnr) for curve in curves.values() for bpp, psnr in curve):
            raise ValueError("a rate that is not positive, or a PSNR that is no number")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LoraCompError(
            f'{path} does not hold curves, {{"NAME": {{"points": [[BPP, PSNR], ...]}}}}: {error}'
        ) from None
    return curves


def gains(curve: Sequence[Point], anchors: Mapping[str, Sequence[Point]]) -> list[dict[str, float]]:
    """PSNR gain in dB of each point of a curve over each anchor at equal bpp; nan outside the anchor's curve."""
    return [{name: quality - psnr_at(anchor, rate) for name, anchor in anchors.items()} for rate, quality in curve]
