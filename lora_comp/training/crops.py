"""Random crops of the training images of data sets."""

import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from lora_comp.data.found import counted, find_images
from lora_comp.data.images import MAX_PIXELS
from lora_comp.errors import LoraCompError
from lora_comp.training import parallel

# Of formats with three samples of 8 bits.
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".avif", ".jp2"}
WORKERS = 4
IN_MEMORY = 8 << 30  # bytes: decoded images are kept in memory up to this total, else decoded for every crop
SCALES = (1.0, 0.9, 0.75, 0.6)  # an image reduced looks like one of a better camera, and training sees more of it
MISSING = 100  # consecutive unreadable images before an error is raised

# Folders of the training images of known data sets; nothing else is read, since it may be test data.
LAYOUTS = {
    "ImageNet": ("train/n????????", "Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/train", "ILSVRC2012_img_train"),
    "COCO": ("train20??", "unlabeled20??", "images/train20??", "images/unlabeled20??"),
    "OpenImages": ("train/data", "train_?"),
    "Flickr2W": ("flicker_2W_images",),
    "a folder with train/": ("train",),
}


def layout(folder: Path) -> tuple[str, list[Path]]:
    """The layout of a data set, a name of `LAYOUTS` or "a folder", and the folders of its training images. Raises
    LoraCompError if it is not a folder."""
    if not folder.is_dir():
        raise LoraCompError(f"{folder} is not a folder; images=[FOLDER,FOLDER] names folders of training images")
    for name, patterns in LAYOUTS.items():
        if matches := sorted(p for pattern in patterns for p in folder.glob(pattern) if p.is_dir()):
            return name, matches
    return "a folder", [folder]


def _files(folders: Sequence[Path]) -> tuple[list[Path], Counter[str]]:
    """The images to read in folders that exist, sorted, and what else is there."""
    found = [find_images(folder) for folder in folders if folder.is_dir()]
    paths = {path for one in found for path in one.images}
    read = sorted(path for path in paths if path.suffix.lower() in SUFFIXES)
    others = Counter(f"{path.suffix.lower()} files" for path in paths.difference(read))
    return read, sum((one.skipped for one in found), others)


def size_of(path: Path) -> tuple[int, int] | None:
    """Height and width from the header of an image file, or None if it is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
            with Image.open(path) as image:
                return (image.height, image.width) if image.height * image.width <= MAX_PIXELS else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def decode(path: Path) -> np.ndarray | None:
    """The image as uint8 (H, W, 3), or None if the file is corrupt."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return None


def reduced(image: np.ndarray, scale: float) -> np.ndarray:
    """An image (H, W, 3) resized by `scale`, at most 1, without aliasing."""
    height, width = extent(image.shape[:2], scale)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def extent(size: tuple[int, ...], scale: float) -> tuple[int, int]:
    """Height and width of an image resized by `scale`."""
    return round(size[0] * scale), round(size[1] * scale)


class Place(NamedTuple):
    """Where a crop is cut: an image, the scale it is resized by, the top left corner, and whether it is mirrored."""

    path: Path
    scale: float
    top: int
    left: int
    mirrored: bool


class Crops:
    """Random square crops of all images of at least `size` pixels on each side.

    Args:
        folders: data sets in one of `LAYOUTS`; others are searched recursively.
        size: side of a crop in pixels.
        scales: an image is resized by one of them, chosen from those that leave it large enough; the first is 1.
        held_out: images whose index is a multiple of this are used for validation.
    Raises:
        LoraCompError: fewer than two images are readable and large enough.
    """

    def __init__(self, folders: Sequence[str | Path], size: int, scales: Sequence[float] = (1.0,), held_out: int = 40):
        self.size, self.scales, self.pool = size, scales, ThreadPoolExecutor(WORKERS)
        layouts = [layout(Path(f)) for f in folders]
        paths, others = _files([folder for _, below in layouts for folder in below])
        with_progress = partial(track, transient=True, disable=parallel.rank() > 0)
        sizes = with_progress(self.pool.map(size_of, paths), "reading image sizes", total=len(paths))
        readable = {path: sides for path, sides in zip(paths, sizes, strict=True) if sides}
        self.sizes = {path: sides for path, sides in readable.items() if min(sides) >= size}
        small = len(readable) - len(self.sizes)
        self.kept: dict[tuple[Path, float], np.ndarray] = {}
        each = [extent(sides, scale) for path, sides in self.sizes.items() for scale in self._scales(path)]
        if 3 * sum(height * width for height, width in each) <= IN_MEMORY:
            for versions in with_progress(
                self.pool.map(self._versions, self.sizes), "decoding images", total=len(self.sizes)
            ):
                self.kept |= versions
            self.sizes = {path: sides for path, sides in self.sizes.items() if (path, 1.0) in self.kept}
        skipped = f"skipped {len(paths) - small - len(self.sizes)} unreadable and {small} smaller ones"
        skipped += f"; not read: {counted(others)}" if others else ""
        if len(self.sizes) < 2:
            raise LoraCompError(
                f"training needs at least two images of {size}x{size} pixels or more in "
                f"{', '.join(map(str, folders))}; {skipped}"
            )
        large = list(self.sizes)
        self.validation, self.training = large[::held_out], [p for i, p in enumerate(large) if i % held_out]
        if parallel.rank() == 0:
            print(f"{len(large)} images from {', '.join(dict.fromkeys(kind for kind, _ in layouts))}; {skipped}")

    def batch(self, count: int, seed: int, share: slice = slice(None)) -> Tensor:
        """Random crops, mirrored with probability 1/2: float32 (count, 3, size, size) in [0, 1].

        seed: determines the crops.
        share: the crops to return.
        """
        rng = np.random.default_rng(seed)
        places = [self._place(rng) for _ in range(count)][share]
        crops, missing = [c for c in self.pool.map(self._crop, places) if c is not None], 0
        while len(crops) < len(places):  # replace unreadable images
            if (crop := self._crop(self._place(rng))) is not None:
                crops.append(crop)
            elif (missing := missing + 1) > MISSING:
                raise LoraCompError(f"{missing} images in a row cannot be read: check that their folders still exist")
        return to_float(np.stack(crops))

    def places(self, count: int, seed: int) -> list[Place]:
        """Where `batch` cuts its crops."""
        rng = np.random.default_rng(seed)
        return [self._place(rng) for _ in range(count)]

    def _place(self, rng: np.random.Generator) -> Place:
        path = self.training[rng.integers(len(self.training))]
        scales = self._scales(path)
        scale = scales[rng.integers(len(scales))]
        top, left = (int(rng.integers(side - self.size + 1)) for side in extent(self.sizes[path], scale))
        return Place(path, scale, top, left, bool(rng.random() < 0.5))

    def _scales(self, path: Path) -> list[float]:
        return [scale for scale in self.scales if min(extent(self.sizes[path], scale)) >= self.size]

    def _versions(self, path: Path) -> dict[tuple[Path, float], np.ndarray]:
        """An image at each of its scales; nothing of a corrupt file."""
        image = decode(path)
        if image is None:
            return {}
        return {(path, scale): image if scale == 1 else reduced(image, scale) for scale in self._scales(path)}

    def _crop(self, place: Place) -> np.ndarray | None:
        path, scale, top, left, mirrored = place
        image = self.kept[path, scale] if self.kept else decode(path)
        if image is None:
            print(f"skipped {path}, which cannot be read")
            return None
        if not self.kept and scale != 1:
            image = reduced(image, scale)
        crop = image[top : top + self.size, left : left + self.size]
        return crop[:, ::-1] if mirrored else crop

    def held_out(self, count: int) -> Tensor:
        """Centre crops of up to `count` validation images: float32 (n, 3, size, size) in [0, 1]."""
        crops: list[np.ndarray] = []
        for path in self.validation:
            top, left = ((side - self.size) // 2 for side in self.sizes[path])
            if len(crops) < count and (crop := self._crop(Place(path, 1.0, top, left, False))) is not None:
                crops.append(crop)
        if not crops:
            raise LoraCompError(f"none of the {len(self.validation)} validation images can be read")
        return to_float(np.stack(crops))


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
