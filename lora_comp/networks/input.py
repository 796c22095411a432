"""The input of a network: how images are resized, ordered in channels, scaled and normalised for it."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from lora_comp.errors import LoraCompError, first_line

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
LONGEST = 1024  # pixels, of the longer side of a small image that is enlarged


@dataclass(frozen=True)
class Input:
    """The input that a network expects, made from an RGB image in [0, 1] in this order.

    size: (H, W) to resize to, without keeping the aspect ratio; None: the image's own size.
    channels: "rgb" or "bgr".
    range: the value of white, 1 or 255.
    mean, std: what each channel, in the network's order, is shifted and divided by, in units of `range`.
    """

    size: tuple[int, int] | None = None
    channels: str = "rgb"
    range: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


def read_input(given: Mapping | str | os.PathLike | None, own: Input) -> Input:
    """`own`, changed by the settings given: by name, or in a YAML file. None leaves a setting as it is.

    Raises LoraCompError for a file that cannot be read, an unknown setting, a value that does not fit, and a mean or
    standard deviation that seems to be of another range where no range is given.
    """
    if isinstance(given, (str, os.PathLike)):
        given = _read_yaml(Path(given))
    known = [field.name for field in fields(Input)]
    if unknown := sorted(set(map(str, given or {})) - set(known)):
        raise LoraCompError(f"the settings of a network's input are {', '.join(known)}, not {', '.join(unknown)}")
    changed: dict[str, Any] = {
        str(name): _fitting(str(name), value) for name, value in (given or {}).items() if value is not None
    }
    wanted = replace(own, **changed)
    if "range" not in changed:
        _check_range(wanted, [name for name in ("mean", "std") if name in changed])
    return wanted


def _check_range(wanted: Input, given: Sequence[str]) -> None:
    """Ask for the range where a mean or standard deviation is not in its units."""
    for name in given:
        numbers = getattr(wanted, name)
        largest = max(map(abs, numbers))
        bytes_in_one = wanted.range == 1 and largest > 1
        shares_of_bytes = name == "mean" and wanted.range > 1 and 0 < largest <= 1
        if bytes_in_one or shares_of_bytes:
            shown = ", ".join(f"{number:g}" for number in numbers)
            other = 255 if bytes_in_one else 1
            raise LoraCompError(
                f"the {name} [{shown}] does not fit an input whose white is {wanted.range:g}: set "
                f"task.input.range={other} if the network takes 0 to {other}, else range={wanted.range:g}"
            )


def _read_yaml(path: Path) -> Mapping:
    try:
        settings = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise LoraCompError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    except yaml.YAMLError as error:
        raise LoraCompError(f"{path} is not YAML: {first_line(error)}") from None
    if not isinstance(settings, Mapping):
        raise LoraCompError(f"{path} must hold lines such as 'size: [352, 352]' and 'channels: bgr'")
    return settings


def _fitting(name: str, value) -> object:
    """The value of a setting, converted to the type that `Input` has."""
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


class Fit(NamedTuple):
    """How an image of a size that a network cannot take is changed: to `size` (H, W), by repeating its last row and
    column if `pads`, else by resizing."""

    size: tuple[int, int]
    pads: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.pads:
            (height, width), (rows, columns) = x.shape[2:], self.size
            return F.pad(x, (0, columns - width, 0, rows - height), mode="replicate")
        return F.interpolate(x, self.size, mode="bilinear", antialias=True)


class Preparation(nn.Module):
    """Turns images (B, 3, H, W) in [0, 1] into a network's input.

    least_side: the shorter side of smaller images is enlarged to so many pixels.
    fits: size (H, W), after that -> how images of it are changed, of those that the network cannot take.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, wanted: Input, least_side: int = 1):
        super().__init__()
        self.wanted, self.least_side = wanted, least_side
        self.fits = dict[tuple[int, int], Fit]()
        self.register_buffer("mean", torch.tensor(wanted.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(wanted.std).view(1, 3, 1, 1), persistent=False)

    def enlarged(self, x: Tensor) -> tuple[int, int]:
        """The size (H, W) of images, of small ones after they are enlarged. A line of pixels becomes no huge image."""
        height, width = x.shape[2:]
        scale = max(self.least_side / min(height, width), 1)
        longest = max(height, width, LONGEST)
        return min(round(height * scale), longest), min(round(width * scale), longest)

    def forward(self, x: Tensor) -> Tensor:
        if self.wanted.size and x.shape[2:] != self.wanted.size:
            x = Fit(self.wanted.size)(x)
        elif (size := self.enlarged(x)) != x.shape[2:]:
            x = F.interpolate(x, size, mode="bilinear")
        if fit := self.fits.get((x.shape[2], x.shape[3])):
            x = fit(x)
        if self.wanted.channels == "bgr":
            x = x.flip(1)
        return (x * self.wanted.range - self.mean) / self.std
