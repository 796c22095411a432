"""Batches of crops for a step that a CUDA graph may replay: what changes from step to step is loaded beforehand."""

from typing import Protocol

import torch
from torch import Tensor

from lora_comp.training import parallel
from lora_comp.training.crops import Crops, Place


class Batches(Protocol):
    def load(self, seed: int) -> None:
        """Choose this process's share of the crops that a seed determines."""

    def __call__(self) -> Tensor:
        """The chosen crops: float32 (B, 3, size, size) in [0, 1], on the device."""


def batches_of(crops: Crops, count: int, device: torch.device) -> Batches:
    """Batches of `count` crops over all processes, cut on a GPU if all images fit into half of its free memory."""
    if device.type == "cuda" and crops.kept:
        size = sum(image.nbytes for image in crops.kept.values())
        if size < torch.cuda.mem_get_info(device)[0] / 2:
            return Resident(crops, count, device)
    return Streamed(crops, count, device)


class Streamed:
    """Crops that the processor cuts."""

    def __init__(self, crops: Crops, count: int, device: torch.device):
        self.crops, self.count, self.share = crops, count, parallel.share(count)
        shape = self.share.stop - self.share.start, 3, crops.size, crops.size
        self.x = torch.empty(shape, device=device, memory_format=torch.channels_last)

    def load(self, seed: int) -> None:
        self.x.copy_(self.crops.batch(self.count, seed, self.share))

    def __call__(self) -> Tensor:
        return self.x


class Resident:
    """Crops that are cut on the device, from all images as bytes in its memory."""

    def __init__(self, crops: Crops, count: int, device: torch.device):
        self.crops, self.count, self.share = crops, count, parallel.share(count)
        self.first: dict[tuple, int] = {}  # pixel of each image
        pixels = 0
        for key, image in crops.kept.items():
            self.first[key] = pixels
            pixels += image.shape[0] * image.shape[1]
        self.pixels = torch.empty(pixels, 3, dtype=torch.uint8, device=device)
        for key, image in crops.kept.items():
            rows = torch.tensor(image).view(-1, 3)
            self.pixels[self.first[key] :][: len(rows)].copy_(rows)
        self.axis = torch.arange(crops.size, device=device)
        self.places = torch.zeros(3, self.share.stop - self.share.start, 1, 1, dtype=torch.long, device=device)

    def load(self, seed: int) -> None:
        places = self.crops.places(self.count, seed)[self.share]
        self.places.copy_(torch.tensor([self._numbers(place) for place in places]).T[:, :, None, None])

    def _numbers(self, place: Place) -> tuple[int, int, int]:
        """The first pixel of a crop, the pixels of a row of its image, and whether it is mirrored."""
        key = place.path, place.scale
        width = self.crops.kept[key].shape[1]
        return self.first[key] + place.top * width + place.left, width, place.mirrored

    def __call__(self) -> Tensor:
        first, width, mirrored = self.places  # (B, 1, 1) each
        column = torch.where(mirrored > 0, len(self.axis) - 1 - self.axis, self.axis)
        at = first + width * self.axis[:, None] + column
        return self.pixels[at].permute(0, 3, 1, 2).float() / 255
