"""Reading and writing of image files as float32 (3, H, W) in [0, 1]."""

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

MAX_PIXELS = 1 << 26  # 8192 x 8192, 805 MB in float32


def _reason(error: Exception) -> str:
    """The system's or Pillow's message as one line, without the path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _to_array(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode to float32 (H, W) or (H, W, 3) in [0, 1], without clipping 16-bit samples."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return np.asarray(image).astype(np.float32) / 65535
    if image.mode in ("I", "F"):
        raise ValueError("samples of 32 bits have no agreed range; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB")).astype(np.float32) / 255


def read_image(path: str | os.PathLike) -> Tensor:
    """Read an image file as float32 (3, H, W) in [0, 1], rotated by its EXIF orientation.

    Grey, palette and CMYK images become RGB (CMYK without its colour profile); transparency is blended with white.
    16-bit grey keeps its precision; Pillow reduces 16-bit colour to 8 bits per sample. Only the first frame of an
    animation is read.

    Raises ImageError if the file is not a complete readable image of at most MAX_PIXELS pixels.
    """
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder, not an image")
    if not os.path.exists(path):
        raise ImageError(f"{path} does not exist")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise ImageError(f"{path} is an empty file, not an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
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
    except Exception as error:  # Pillow's decoders raise almost any exception for a corrupt file
        raise ImageError(f"{path} cannot be read as an image: {_reason(error)}") from error
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def write_image(path: str | os.PathLike, image: Tensor) -> None:
    """Write an image, float (3, H, W) in [0, 1], rounded to 8 bits, in the format of the suffix (.png is lossless).

    The file is replaced atomically. Raises ImageError if it cannot be written.
    """
    path = Path(path)
    if image.ndim != 3 or image.shape[0] != 3:
        raise ImageError(f"cannot write {path}: an image has shape (3, H, W), not {tuple(image.shape)}")
    kind = Image.registered_extensions().get(path.suffix.lower())
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
