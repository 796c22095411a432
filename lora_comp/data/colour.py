"""Colour profiles (ICC): samples in the colours of a profile to sRGB, by LittleCMS through Pillow."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # Pillow's mode: the colour space in a profile's header
ROUNDING = 1  # of 255: a profile that moves no colour further is sRGB


def to_srgb(samples: np.ndarray, mode: str, profile: bytes | None) -> np.ndarray | None:
    """Samples (H, W, n) in [0, 1] of a mode "L", "RGB" or "CMYK" as sRGB, float32 (H, W, 3), in steps of 1/255.

    None where nothing is to be converted: without a profile, with that of sRGB, and with one that cannot be read or
    that belongs to another mode. The rendering intent is perceptual, Pillow's default.
    """
    transform = _transform(profile, mode) if profile else None
    return None if transform is None else _apply(transform, np.rint(samples * 255).astype(np.uint8), mode)


def lab_to_rgb(image: Image.Image) -> Image.Image:
    """An image of Pillow's mode "LAB" (CIE L*a*b*, D50) as sRGB."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if opened.profile.xcolor_space.strip() != SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    greys, steps = np.arange(256), np.arange(0, 256, 17)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    probe = greys[:, None] if mode == "L" else np.concatenate([np.repeat(greys[:, None], 3, 1), colours])
    moved = _apply(transform, probe[None].astype(np.uint8), mode) * 255 - probe
    return np.abs(moved).max() <= ROUNDING + 0.5


def _apply(transform: ImageCms.ImageCmsTransform, samples: np.ndarray, mode: str) -> np.ndarray:
    height, width = samples.shape[:2]
    image = Image.frombytes(mode, (width, height), samples.tobytes())
    return np.asarray(transform.apply(image)).astype(np.float32) / 255
