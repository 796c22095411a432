"""How a network wants its images: resized, in its order of channels, scaled and normalised."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from lora_comp.errors import LoraCompError


@dataclass(frozen=True)
class Input:
    """What becomes of an image in [0, 1], RGB, before a network sees it, in this order.

    size: (H, W) it is resized to, without keeping its aspect; None: as it is.
    channels: "rgb" or "bgr".
    range: what white is, 1 or 255.
    mean, std: subtracted and divided by, of each channel in the network's order, in units of `range`.
    """

    size: tuple[int, int] | None = None
    channels: str = "rgb"
    range: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


def read_input(given: Mapping | str | os.PathLike | None, own: Input) -> Input:
    """`own` with what is given: settings by name, or a YAML file of them. What is None stays the network's own.

    Raises LoraCompError for a file that is none, an unknown name and a value that does not fit.
    """
    if isinstance(given, (str, os.PathLike)):
        given = _read_yaml(Path(given))
    known = [field.name for field in fields(Input)]
    if unknown := sorted(set(map(str, given or {})) - set(known)):
        raise LoraCompError(f"a network's input is told by {', '.join(known)}, not {', '.join(unknown)}")
    told: dict[str, Any] = {
        str(name): _fitting(str(name), value) for name, value in (given or {}).items() if value is not None
    }
    return replace(own, **told)


def _read_yaml(path: Path) -> Mapping:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise LoraCompError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    except yaml.YAMLError as error:
        raise LoraCompError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, Mapping):
        raise LoraCompError(f"{path} must hold lines such as 'size: [352, 352]' and 'channels: bgr'")
    return found


def _fitting(name: str, value) -> object:
    """The value of a setting in the type of `Input`."""
    if name == "size":
        sides = [value, value] if isinstance(value, int) else list(value) if _is_list(value) else []
        if len(sides) == 2 and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
            return sides[0], sides[1]
        raise LoraCompError(f"the size of a network's input must be a side or [height, width], not {value!r}")
    if name == "channels":
        if str(value).lower() in ("rgb", "bgr"):
            return str(value).lower()
        raise LoraCompError(f"the channels of a network's input must be rgb or bgr, not {value!r}")
    if name == "range":
        if _is_number(value) and value > 0:
            return float(value)
        raise LoraCompError(f"the range of a network's input must be a number above 0, as 1 or 255, not {value!r}")
    numbers = list(value) if _is_list(value) else []
    if len(numbers) == 3 and all(map(_is_number, numbers)) and (name == "mean" or min(numbers) > 0):
        return tuple(map(float, numbers))
    above = "" if name == "mean" else " above 0"
    raise LoraCompError(f"the {name} of a network's input must be three numbers{above}, not {value!r}")


def _is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Preparation(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to what a network takes. channels_last: to (B, H, W, 3)."""

    mean: Tensor
    std: Tensor

    def __init__(self, wanted: Input, channels_last: bool = False):
        super().__init__()
        self.wanted, self.channels_last = wanted, channels_last
        self.register_buffer("mean", torch.tensor(wanted.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(wanted.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.wanted.size and x.shape[2:] != self.wanted.size:
            x = F.interpolate(x, self.wanted.size, mode="bilinear", antialias=True)
        if self.wanted.channels == "bgr":
            x = x.flip(1)
        x = (x * self.wanted.range - self.mean) / self.std
        return x.permute(0, 2, 3, 1) if self.channels_last else x
