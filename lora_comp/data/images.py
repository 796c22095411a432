"""Reading and writing of image files as float32 (3, H, W) in [0, 1], and the other forms in which Python has images."""

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_comp.data import jpeg2000, png, ppm, tiff
from lora_comp.data.pixels import MAX_PIXELS, Pixels, of_array, of_pillow, open_image
from lora_comp.errors import ImageError, LoraCompError
from lora_comp.files import write_file

__all__ = ["MAX_PIXELS", "read_image", "read_mask", "to_batch", "to_image", "to_mask", "write_image"]
READERS = [
    (png.SIGNATURES, png.read_png),
    (tiff.SIGNATURES, tiff.read_tiff),
    (ppm.SIGNATURES, ppm.read_ppm),
    (jpeg2000.SIGNATURES, jpeg2000.read_jpeg2000),
]


def read_image(path: str | os.PathLike) -> Tensor:
    """Read an image file as float32 sRGB (3, H, W) in [0, 1], rotated by its EXIF orientation.

    - Grey, palette and CMYK images become RGB; transparency is blended with white, at every depth.
    - Colours of an ICC profile are converted to sRGB (LittleCMS, perceptual intent) in steps of 1/255. A profile of
      sRGB changes no value; one that cannot be read, or is for another colour space, is ignored. So are PNG's gAMA,
      cHRM and cICP.
    - 16 bits keep their precision in PNG, TIFF and binary PGM and PPM, but Pillow reduces colour of a TIFF compressed
      by LZW or ZSTD, and of other formats, to 8 bits per sample.
    - Samples that are signed, floating-point or of more than 16 bits have no agreed range and are refused.
    - Only the first frame of an animation, or page of a TIFF, is read. Text in a PNG is skipped, however long.

    Raises ImageError if the file is not a complete readable image of at most MAX_PIXELS pixels.
    """
    return _tensor(_read(path).on_white())


def read_mask(path: str | os.PathLike) -> Tensor:
    """Read an image file as weights, float32 (H, W) in [0, 1]: 1 where it is white and opaque.

    Where all that is visible has one colour, the weights are the opacity, whatever the colour. Colour profiles are
    ignored. Raises ImageError as `read_image`, and if no weight reaches 0.1.
    """
    return _weights(_read(path), str(path))


def to_image(image: Tensor | np.ndarray | Image.Image | str | os.PathLike) -> Tensor:
    """A tensor as it is; a path as `read_image` reads it; a PIL image, or a NumPy array, as float32 (3, H, W).

    Arrays are (H, W), (H, W, 1), (H, W, 3) in the order red, green, blue, or with alpha (H, W, 2) and (H, W, 4):
    uint8 from 0 to 255, uint16 from 0 to 65535, bool, or floats in [0, 1].
    Raises LoraCompError for any other object, shape, dtype or range.
    """
    if isinstance(image, Tensor):
        return image
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    return _tensor(_pixels(image, "an image").on_white())


def to_batch(images: Sequence[Any] | Tensor | np.ndarray, device: torch.device) -> Tensor:
    """Several images of one size, see `to_image`, as float32 (B, 3, H, W) in [0, 1] on a device.

    Raises LoraCompError for images of other shapes, types and ranges, of different sizes, and for none.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        raise LoraCompError("a batch is a list of images; encode takes one")
    tensors = [to_image(image).detach() for image in images]
    for tensor in tensors:
        _check(tensor)
    if len({tensor.shape for tensor in tensors}) != 1:
        sizes = " and ".join(sorted({f"{tensor.shape[1]}x{tensor.shape[2]}" for tensor in tensors}))
        raise LoraCompError(f"a batch needs images of one size, not of {sizes or 'none'}: encode them separately")
    return torch.stack([tensor.to(device, torch.float32) for tensor in tensors])


def _check(image: Tensor) -> None:
    """Raise LoraCompError unless `image` is a float tensor (3, H, W) in [0, 1]."""
    if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point() or 0 in image.shape:
        raise LoraCompError(f"image must be a float tensor of shape (3, H, W), not {tuple(image.shape)}, {image.dtype}")
    if not ((image >= 0) & (image <= 1)).all():
        raise LoraCompError("image must lie in [0, 1]: scale or clamp it, and replace NaNs")


def to_mask(mask: Tensor | np.ndarray | Image.Image | str | os.PathLike) -> Tensor:
    """Weights (H, W) from the same kinds of objects, see `to_image` and `read_mask`."""
    if isinstance(mask, Tensor):
        return mask
    if isinstance(mask, str | os.PathLike):
        return read_mask(mask)
    return _weights(_pixels(mask, "a region of interest"), "the region of interest")


def write_image(path: str | os.PathLike, image: Tensor) -> None:
    """Write an image, float (3, H, W) in [0, 1], rounded to 8 bits, in the format of the suffix (.png is lossless).

    The file is replaced atomically; a device or a pipe without a suffix is given a PNG.
    Raises ImageError if it cannot be written.
    """
    path = Path(path)
    if image.ndim != 3 or image.shape[0] != 3:
        raise ImageError(f"cannot write {path}: an image has shape (3, H, W), not {tuple(image.shape)}")
    special = path.exists() and not path.is_file() and not path.is_dir()
    kind = Image.registered_extensions().get(path.suffix.lower() or ".png" * special)
    if kind is None or kind not in Image.SAVE:
        raise ImageError(f"cannot write {path}: unknown image format {path.suffix!r}; use .png")
    array = image.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    encoded = io.BytesIO()
    try:
        Image.fromarray(array).save(encoded, kind)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot write {path}: {_reason(error)}") from error
    try:
        write_file(path, encoded.getvalue())
    except LoraCompError as error:
        raise ImageError(str(error)) from None


def _read(path: str | os.PathLike) -> Pixels:
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder, not an image")
    if not os.path.exists(path):
        raise ImageError(f"{path} does not exist")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise ImageError(f"{path} is an empty file, not an image")
    try:
        with _opened(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is corrupt, but can be read
            start = file.read(12)
            file.seek(0)
            reader = next((read for signatures, read in READERS if start.startswith(signatures)), _read_other)
            return reader(file)
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image in a known format") from error
    except Exception as error:  # decoders raise almost any exception for a corrupt file
        raise ImageError(f"{path} cannot be read as an image: {_reason(error)}") from error


def _opened(path: str | os.PathLike) -> BinaryIO:
    """A file that can be read from its start again, which a pipe cannot."""
    return open(path, "rb") if os.path.isfile(path) else io.BytesIO(Path(path).read_bytes())


def _read_other(file: BinaryIO) -> Pixels:
    with open_image(file) as image:
        return of_pillow(image)


def _reason(error: Exception) -> str:
    """The system's or a decoder's message as one line, without the path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, LookupError | TypeError | AttributeError) or not text:  # a decoder lost its way
        text = f"it is corrupt ({type(error).__name__} {text})"
    return " ".join(text.split())


def _pixels(value: np.ndarray | Image.Image, what: str) -> Pixels:
    try:
        if isinstance(value, Image.Image):
            return of_pillow(value)
        if isinstance(value, np.ndarray):
            return of_array(value)
    except Exception as error:  # as of a file: Pillow decodes it only now
        raise ImageError(f"{what} cannot be used: {_reason(error)}") from error
    raise LoraCompError(f"{what} is a tensor, a NumPy array, a PIL image or a path, not {type(value).__name__}")


def _tensor(rgb: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))


def _weights(pixels: Pixels, name: str) -> Tensor:
    weights = pixels.weights()
    if weights.max() < 0.1:
        raise ImageError(
            f"{name} selects nothing: its brightest pixel is {255 * weights.max():.0f} of 255, and white is where "
            "pixels count"
        )
    return torch.from_numpy(np.ascontiguousarray(weights))
