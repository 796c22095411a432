"""What the libraries' detectors share: COCO's ids turned into its categories, and images of bytes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_comp.errors import LoraCompError


def contiguous(names: Sequence[str]) -> tuple[list[str], Tensor]:
    """Classes from the names of all ids, of which the first is the background and others may be "N/A" (of COCO's 91
    ids 80 are categories), and for each id the index of its class, or -1: int64 (ids,)."""
    real = [index for index, name in enumerate(names) if index and name != "N/A"]
    table = torch.full((len(names),), -1)
    table[real] = torch.arange(len(real))
    return [names[index] for index in real], table


def in_classes(found: dict[str, Tensor], table: Tensor) -> dict[str, Tensor]:
    """Detections with ids as labels, with classes as labels, best first; those of ids without a class are left out."""
    labels = table[found["labels"]]
    kept = torch.nonzero(labels >= 0)[:, 0]
    kept = kept[found["scores"][kept].argsort(descending=True, stable=True)]
    return {key: value[kept] for key, value in (found | {"labels": labels}).items()}


def to_bytes(x: Tensor) -> Tensor:
    """Images in [0, 1], rounded to 8 bits as a file of them would be: uint8."""
    return x.detach().clamp(0, 1).mul(255).round().byte()


def check_sides(x: Tensor, longest: int, name: str) -> None:
    """LoraCompError where images (B, 3, H, W), made to fit into `longest`, would have no pixel across."""
    short, long = sorted(x.shape[2:])
    if short * longest < long:
        raise LoraCompError(
            f"{name} cannot take an image of {x.shape[2]}x{x.shape[3]}: it makes the longer side "
            f"{longest}, and nothing is left of the shorter one"
        )
