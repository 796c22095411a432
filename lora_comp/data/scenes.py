"""`scenes`: images generated from a seed, with exact labels, boxes and masks for classification, detection and
segmentation.

A scene has a photograph as background, a dominant object of one of twelve kinds, which sets the label, and up to four
smaller objects of other kinds. Objects are filled with another photograph, tinted for low to high contrast with the
background. Light, scale, rotation, blur and noise vary. Objects of low contrast and kinds of similar outline are the
first to be lost under heavy compression.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from lora_comp.data.folders import photograph
from lora_comp.data.sample import Sample
from lora_comp.data.shapes import KINDS, OUTLINES, coverage
from lora_comp.errors import LoraCompError
from lora_comp.settings import setting

# PNGs only: the pixels of a JPEG depend on the decoder.
TEXTURES = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "stereo_motorcycle")
SPLITS = ("train", "val", "test")
ODD = (161, 351)  # range of each side when size="odd"
MAX_LESSER = 4


@dataclass
class _Object:
    """An object placed in a scene: its kind, and its coverage of the pixels from (top, left) on."""

    kind: int
    top: int
    left: int
    alpha: np.ndarray  # (h, w) float32 in [0, 1]

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@cache
def _texture(name: str) -> Image.Image:
    return Image.fromarray(photograph(name))


def _crop(rng: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """A random crop of a random photograph, resampled to (height, width, 3), float32 in [0, 1]."""
    texture = _texture(TEXTURES[rng.randint(len(TEXTURES))])
    zoom = min(texture.width / width, texture.height / height, 2.0) * rng.uniform(0.45, 1.0)
    left = rng.uniform(0, texture.width - width * zoom)
    top = rng.uniform(0, texture.height - height * zoom)
    box = (left, top, left + width * zoom, top + height * zoom)
    part = np.asarray(texture.resize((width, height), Image.Resampling.BILINEAR, box))
    part = part[:, ::-1] if rng.randint(2) else part
    return part.astype(np.float32) / 255


def _place(
    rng: np.random.RandomState, kind: int, centre: np.ndarray, radius: float, height: int, width: int
) -> _Object:
    """An object with random rotation and aspect ratio, clipped to the image."""
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.0)
    cos, sin = np.cos(angle) * radius, np.sin(angle) * radius
    turn = np.array([[cos, sin], [-sin, cos]]) * np.array([[1.0], [squeeze]])
    points = [outline @ turn + centre for outline in OUTLINES[KINDS[kind]]]
    low = np.floor(points[0].min(axis=0)).clip(0).astype(int)
    high = np.ceil(points[0].max(axis=0)).clip(None, (width, height)).astype(int)
    if (high - low).min() < 1:
        return _Object(kind, 0, 0, np.zeros((1, 1), np.float32))
    alpha = coverage([p - low for p in points], high[1] - low[1], high[0] - low[0])
    return _Object(kind, int(low[1]), int(low[0]), alpha)


def _arrange(rng: np.random.RandomState, label: int, height: int, width: int) -> list[_Object]:
    """The objects of a scene from back to front. The dominant one is in front, the largest, and fully inside."""
    side = min(height, width)
    radius = side * rng.uniform(0.14, 0.32)
    size = np.array([width, height])
    centre = rng.uniform(1.15 * radius, size - 1.15 * radius)
    others = rng.permutation([kind for kind in range(len(KINDS)) if kind != label])[: rng.randint(MAX_LESSER + 1)]
    objects = []
    for kind in others:
        spot = rng.uniform(0.05, 0.95, size=(6, 2)) * size
        spot = spot[np.argmax(((spot - centre) ** 2).sum(axis=1))]
        objects.append(_place(rng, int(kind), spot, radius * rng.uniform(0.3, 0.55), height, width))
    return [*objects, _place(rng, label, centre, radius, height, width)]


def _visible(objects: list[_Object], height: int, width: int) -> tuple[list[_Object], np.ndarray]:
    """The objects of which at least 12 pixels and a third are visible, and their visible masks (n, H, W).

    The others are removed from the scene, so that every object in the image is annotated.
    """
    while True:
        covered = np.zeros((height, width), bool)
        kept, masks = [], []
        for item in reversed(objects):
            mask = np.zeros((height, width), bool)
            mask[item.window] = item.alpha >= 0.5
            whole = mask.sum()
            mask &= ~covered
            covered |= mask
            if mask.sum() >= max(12, whole / 3):
                kept.append(item)
                masks.append(mask)
        if len(kept) == len(objects):
            return kept[::-1], np.stack(masks[::-1])
        objects = kept[::-1]


def _paint(rng: np.random.RandomState, image: np.ndarray, item: _Object) -> None:
    """Fill an object with a tinted photograph whose mean differs from the covered background by a random amount."""
    height, width = item.alpha.shape
    under = image[item.window]
    fill = _crop(rng, height, width)
    direction = rng.uniform(-1, 1, size=3)
    step = direction / np.abs(direction).max() * rng.uniform(0.08, 0.32)
    colour = under.mean(axis=(0, 1)) + step
    colour = np.where((colour < 0.05) | (colour > 0.95), colour - 2 * step, colour)  # away from black and white
    fill = (fill - fill.mean(axis=(0, 1))) * rng.uniform(0.15, 0.75) + colour
    under += item.alpha[..., None] * (fill.astype(np.float32) - under)


def _finish(rng: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Apply uneven coloured light, blur and noise: float32 (H, W, 3) to uint8."""
    height, width, _ = image.shape
    slope = rng.uniform(-0.3, 0.3, size=2)
    light = 1 + slope[0] * np.linspace(-1, 1, height)[:, None] + slope[1] * np.linspace(-1, 1, width)
    tint = rng.uniform(0.7, 1.15) * rng.uniform(0.9, 1.1, size=3)
    image = image * light[..., None].astype(np.float32) * tint.astype(np.float32)
    image = np.clip(image * 255, 0, 255).astype(np.uint8)
    if rng.randint(2):
        blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
        image = np.asarray(blurred)
    noise = np.frombuffer(rng.bytes(2 * image.size), np.uint8).reshape(2, *image.shape)
    noise = noise[0].astype(np.float32) + noise[1] - 255  # triangular, standard deviation 104
    return np.clip(image + noise * np.float32(rng.uniform(0, 6) / 104), 0, 255).round().astype(np.uint8)


@dataclass(frozen=True)
class ScenesOptions:
    split: str = setting("val", "train, val or test, whose scenes differ")
    size: Any = setting(128, "side, [height,width], or odd: sides from 161 to 351")
    seed: int = setting(0, "of the generator", low=0, high=2**32 - 1)
    limit: int | None = setting(24, "how many scenes", low=1)


class Scenes:
    """Generated scenes. Scene i depends only on seed, split and i, and is identical on every machine.

    split: "train", "val" or "test". All use the same eight photographs.
    count: number of scenes.
    size: the side, or (height, width), at least 32 pixels; or "odd": each side drawn from 161 to 351.
    seed: 0 to 2**32 - 1.

    `label` of a sample is the dominant object's kind. `boxes`, `labels` and `masks` are of all objects, the dominant
    one last; masks are visible pixels, and boxes enclose them.
    """

    options = ScenesOptions

    def __init__(self, split: str = "val", count: int = 500, size: int | tuple[int, int] | str = 128, seed: int = 0):
        if split not in SPLITS:
            raise LoraCompError(f"unknown split {split!r} of scenes; available are {', '.join(SPLITS)}")
        self.name, self.classes = "scenes", list(KINDS)
        self.split, self.count, self.seed = split, count, seed
        self.size: tuple[int, int] | None = None
        if size != "odd":
            sides: list = [size, size] if isinstance(size, int) else list(size)
            if len(sides) != 2 or not all(isinstance(side, int) and side >= 32 for side in sides):
                raise LoraCompError(
                    f"the size of scenes is a side or (height, width) of at least 32, or 'odd', not {size}"
                )
            self.size = sides[0], sides[1]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        # RandomState, because numpy guarantees that its streams never change.
        rng = np.random.RandomState([self.seed, SPLITS.index(self.split), index])
        height, width = self.size or tuple(int(side) for side in rng.randint(ODD[0], ODD[1] + 1, size=2))
        label = int(rng.randint(len(KINDS)))
        objects, masks = _visible(_arrange(rng, label, height, width), height, width)
        image = _crop(rng, height, width) * np.float32(rng.uniform(0.6, 1.0)) + np.float32(rng.uniform(0, 0.2))
        for item in objects:
            _paint(rng, image, item)
        pixels = np.ascontiguousarray(_finish(rng, image).transpose(2, 0, 1))
        return Sample(
            name=f"scene-{self.split}-{self.seed}-{index:06d}",
            image=torch.from_numpy(pixels).float() / 255,
            label=label,
            boxes=torch.from_numpy(np.stack([_box(mask) for mask in masks])),
            labels=torch.tensor([item.kind for item in objects]),
            masks=torch.from_numpy(masks),
            annotated=True,
            classes=self.classes,
        )


def _box(mask: np.ndarray) -> np.ndarray:
    """Bounding box of a mask: float32 (4,), x1 y1 x2 y2, right and lower edge exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
