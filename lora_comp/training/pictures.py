"""Training pictures, decoded once and kept as bytes; crops are drawn from a seed."""
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_comp.errors import LoraCompError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class Crops:
    """Random square crops of all the pictures under some folders that are large enough.

    Args:
        folders: searched with all their subfolders.
        size: side of a crop in pixels.
        held_out: every picture whose index is a multiple of this is left for validation.
    """

    def __init__(self, folders: Sequence[str | Path], size: int, held_out: int = 40):
        paths = sorted(p for f in folders for p in Path(f).rglob("*") if p.suffix.lower() in SUFFIXES)

        def load(path: Path) -> np.ndarray:
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))  # (H, W, 3) uint8

        with ThreadPoolExecutor(2) as pool:
            pictures = [p for p in pool.map(load, paths) if min(p.shape[:2]) >= size]
        if len(pictures) < 2:
            raise LoraCompError(f"no pictures of at least {size}x{size} under {', '.join(map(str, folders))}")
        self.size = size
        self.validation = pictures[::held_out]
        self.training = [p for i, p in enumerate(pictures) if i % held_out]

    def batch(self, count: int, seed: int) -> Tensor:
        """Crops, each mirrored with probability 1/2, the same for the same seed: float32 (count, 3, size, size)."""
        rng = np.random.default_rng(seed)
        crops = []
        for _ in range(count):
            picture = self.training[rng.integers(len(self.training))]
            top, left = (rng.integers(side - self.size + 1) for side in picture.shape[:2])
            crop = picture[top:top + self.size, left:left + self.size]
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        return to_float(np.stack(crops))

    def held_out(self, count: int) -> Tensor:
        """The middle crops of the first pictures held out: float32 (at most count, 3, size, size)."""
        def middle(p: np.ndarray) -> np.ndarray:
            top, left = ((side - self.size) // 2 for side in p.shape[:2])
            return p[top:top + self.size, left:left + self.size]

        return to_float(np.stack([middle(p) for p in self.validation[:count]]))


def to_float(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
