"""Images in files: any common format in, float32 (3, H, W) in [0, 1] out, and back."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lora_comp.errors import ImageError, LoraCompError
from lora_comp.files import write_file

MAX_PIXELS = 1 << 26  # 8192 x 8192, 805 MB in float32; four times the largest image that the codecs promise to take


def _reason(error: Exception) -> str:
    """What the system or Pillow said, as one line without the path, which the caller names itself."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _to_array(image: Image.Image) -> np.ndarray:
    """An upright Pillow image of any mode to (H, W) or (H, W, 3) in [0, 1], without clipping 16-bit samples."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return np.asarray(image).astype(np.float32) / 65535
    if image.mode in ("I", "F"):
        raise ValueError("samples of 32 bits have no agreed range; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB")).astype(np.float32) / 255


def read_image(path: str | os.PathLike) -> Tensor:
    """The image in a file, as float32 (3, H, W) in [0, 1], upright as its EXIF orientation says.

    Grey and palette images become RGB, CMYK too (without its colour profile). Transparent pixels show white, as on a
    page. 16-bit grey keeps its precision; Pillow reads 16-bit colour at 8 bits a sample, scaled and not clipped.
    Only the first frame of an animation is read.

    Raises ImageError for anything that is not a whole readable image of at most MAX_PIXELS pixels.
    """
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder, not an image")
    if not os.path.exists(path):
        raise ImageError(f"{path} does not exist")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise ImageError(f"{path} is an empty file, not an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            image = Image.open(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
            source_format = image.format
            image.load()
            upright = ImageOps.exif_transpose(image)
            upright.format = source_format
            array = _to_array(upright)
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image in a known format") from error
    except Exception as error:  # a damaged file can raise nearly anything in Pillow's decoders
        raise ImageError(f"{path} cannot be read as an image: {_reason(error)}") from error
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def write_image(path: str | os.PathLike, image: Tensor) -> None:
    """Write (3, H, W) in [0, 1], rounded to 8 bits, in the format that the suffix names (.png keeps every value).

    The file appears under its name only when it is complete. Raises ImageError when it cannot be written.
    """
    path = Path(path)
    if image.ndim != 3 or image.shape[0] != 3:
        raise ImageError(f"cannot write {path}: an image is (3, H, W), not {tuple(image.shape)}")
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ImageError(f"cannot write {path}: no image format is called {path.suffix or 'nothing'!r}; use .png")
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
