"""What an image file holds, before it is an image: samples in [0, 1], their colour space, transparency and profile."""

import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps

from lora_comp.data.colour import lab_to_rgb, to_srgb

MAX_PIXELS = 1 << 26  # 8192 x 8192, 805 MB in float32
DEEP = ("JPEG2000", "PNG", "PPM", "TIFF", None)  # formats whose samples of 16 bits are unsigned and have a known white
SCALED = ("PNG", "PPM")  # formats whose samples of 16 bits Pillow may hold in 32
AS_RGB = ("HSV", "RGBX", "YCbCr")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
KINDS = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}  # SampleFormat


@dataclass(frozen=True)
class Pixels:
    """samples: float32 (H, W, n) in [0, 1], where n is 1 for the mode "L", 3 for "RGB" and 4 for "CMYK".
    alpha: float32 (H, W, 1) in [0, 1], not multiplied into the samples; None for an opaque image.
    profile: an ICC profile, if the file has one.
    """

    samples: np.ndarray
    mode: str
    alpha: np.ndarray | None = None
    profile: bytes | None = None

    def on_white(self) -> np.ndarray:
        """sRGB, float32 (H, W, 3) in [0, 1]; what is transparent shows white."""
        rgb = to_srgb(self.samples, self.mode, self.profile)
        if rgb is None:
            rgb = self._without_profile()
        return rgb if self.alpha is None else rgb * self.alpha + (1 - self.alpha)

    def weights(self) -> np.ndarray:
        """Weights, float32 (H, W) in [0, 1]: see `read_mask`."""
        rgb = self._without_profile()
        if self.alpha is None:
            return rgb.mean(-1)
        visible = rgb[self.alpha[..., 0] > 0]
        of_one_colour = self.alpha.min() < self.alpha.max() and np.ptp(visible, axis=0).max() == 0
        return self.alpha[..., 0] if of_one_colour else rgb.mean(-1) * self.alpha[..., 0]

    def _without_profile(self) -> np.ndarray:
        if self.mode == "L":
            return np.repeat(self.samples, 3, axis=2)
        return self.samples if self.mode == "RGB" else (1 - self.samples[..., :3]) * (1 - self.samples[..., 3:])


def check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} is more than {MAX_PIXELS} pixels")


def open_image(file: BinaryIO) -> ImageFile.ImageFile:
    """A Pillow image that is not decoded yet. Raises ValueError if it has more than MAX_PIXELS pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
        image = Image.open(file)
    check_size(*image.size)
    return image


def of_array(values: np.ndarray) -> Pixels:
    """The pixels of an array as `to_image` describes it. Raises ValueError for any other."""
    shape, kind = values.shape, values.dtype.kind
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] not in (1, 2, 3, 4) or 0 in shape:
        moved = "; move its channels last" if values.ndim == 3 and shape[0] in (1, 3, 4) else ""
        raise ValueError(f"an array must have shape (H, W), (H, W, 3) or (H, W, 4), not {shape}{moved}")
    if kind not in "bf" and not (kind == "u" and values.dtype.itemsize <= 2):
        raise ValueError(
            f"an array of {values.dtype} has no agreed range; give uint8, uint16, or floats that lie in [0, 1]"
        )
    samples = values.astype(np.float32) / (np.iinfo(values.dtype).max if kind == "u" else 1)
    if not ((samples >= 0) & (samples <= 1)).all():
        raise ValueError("an array of floats must lie in [0, 1]: scale or clip it, and replace NaNs")
    return of_samples(samples)


def of_samples(samples: np.ndarray, profile: bytes | None = None) -> Pixels:
    """The pixels of grey, grey and alpha, RGB, or RGB and alpha: float32 (H, W, 1 to 4) in [0, 1]."""
    count = samples.shape[2]
    samples, alpha = (samples[..., :-1], samples[..., -1:]) if count % 2 == 0 else (samples, None)
    return Pixels(samples, "L" if count < 3 else "RGB", alpha, profile)


def of_pillow(image: Image.Image) -> Pixels:
    """The pixels of a Pillow image, rotated by its EXIF orientation.

    Raises ValueError for samples without an agreed range.
    """
    source, tags = image.format, getattr(image, "tag_v2", {})
    image.load()
    image = ImageOps.exif_transpose(image)
    profile, key = image.info.get("icc_profile"), image.info.get("transparency")
    check_samples(tags.get(SAMPLE_FORMAT, (1,)), tags.get(BITS, (8,)))
    if image.mode.startswith("I;16") or (image.mode == "I" and source in SCALED):
        if source not in DEEP:
            raise ValueError(f"samples of 16 bits in {source} have no agreed range; convert it to PNG or TIFF")
        values = np.asarray(image)[..., None]
        return Pixels(_grey(values, tags), "L", opaque_but(values, key), profile)
    if image.mode[0] in "IF":
        check_samples((3 if image.mode == "F" else 1,), (32,))
    image = _simple(image)
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    alpha = None
    if image.mode in ("LA", "RGBA"):
        values, alpha = values[..., :-1], values[..., -1:].astype(np.float32) / 255
    elif image.mode in ("L", "RGB"):
        alpha = opaque_but(values, key)
    return Pixels(values.astype(np.float32) / 255, image.mode.rstrip("A"), alpha, profile)


def check_samples(formats: tuple[int, ...], depths: tuple[int, ...]) -> None:
    """Raise ValueError for samples without an agreed range, by TIFF's numbers of sample formats."""
    kind, bits = next((KINDS[one] for one in formats if one in KINDS), ""), max(depths)
    if kind or bits > 16:
        raise ValueError(f"{kind}samples of {bits} bits have no agreed range; convert it to unsigned 8 or 16 bits")


def _grey(values: np.ndarray, tags: Any) -> np.ndarray:
    """Samples in [0, 1] from 16 bits; a TIFF of 12 bits is not scaled by Pillow, nor inverted."""
    bits = tags.get(BITS, (16,))[0]
    samples = values.astype(np.float32) / (2**bits - 1)
    return 1 - samples if tags.get(PHOTOMETRIC) == 0 else samples


def _simple(image: Image.Image) -> Image.Image:
    """An image of 8 bits per sample in one of the modes L, LA, RGB, RGBA and CMYK."""
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "LAB":
        return lab_to_rgb(image)
    if image.mode in AS_RGB:
        return image.convert("RGB")
    return image.convert({"1": "L", "La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode))


def opaque_but(values: np.ndarray, key: int | tuple[int, ...] | bytes | None) -> np.ndarray | None:
    """The alpha of samples (H, W, n) of which one value, or colour, is transparent."""
    if key is None or isinstance(key, bytes):
        return None
    return (values != np.asarray(key)).any(-1, keepdims=True).astype(np.float32)


def turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Values (H, W, n) turned and mirrored as the number of EXIF's, or TIFF's, tag Orientation says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return values[:: -1 if rows else 1, :: -1 if columns else 1]
