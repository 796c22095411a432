"""Adapt-ICMH: adapters in space and frequency that turn a codec for people into one for machines.

Li et al., "Image Compression for Machine and Human Vision with Spatial-Frequency Adaptation", ECCV 2024. The codec is
frozen. A spatial-frequency modulation adapter (SFMA) stands after each of the first three stages of g_a, before its map
shrinks, and after each of the first three layers of g_s that enlarge it:

    x + up(relu(depthwise 5x5(down x) * down' x))                                   space: `Spatial`
      + up(relu(irfft2(Y * sigmoid(1x1(relu(depthwise 3x3(|Y|)))))))  Y = rfft2(down x)  frequency: `Frequency`

Only amplitudes are modulated, phases are left alone. Nothing is fitted to an image and nothing is transmitted: a file
names its adapter by a hash. Entropy model and gains are those of the codec, so one adapter serves all rates of a codec
that has them. A new adapter changes nothing, since what its branches add starts at zero.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_comp.codecs.codec import replace_parts, title
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods.adapter_files import choose, of_identity
from lora_comp.methods.low_rank import identify
from lora_comp.methods.method import FitSettings, Spec, Unfitted, check_new
from lora_comp.settings import setting

NAMES = ("icmh",)
LR = 1e-4  # published, with Adam
AFTER = (1, 3, 5)  # layers of g_a and g_s, which alternate stages and layers that change the size of the map
MOST = 512  # channels of an adapter
SHARE = 2  # an adapter has half of a map's channels: published for TIC, 64 of 128


@dataclass(frozen=True)
class IcmhOptions:
    """Options of Adapt-ICMH."""

    adapter: str = setting(
        "auto",
        "auto: the one trained for the task; a file that lora-comp train wrote; or the key of another task, such as "
        "cls-scenes",
        path=True,
    )
    width: int | None = setting(
        None, "in training: channels inside of the adapters; null: half of those of each map", low=1, high=MOST
    )


def _depthwise(channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)


class Spatial(nn.Module):
    """Space: (B, channels, H, W) to what is added to it."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.down, self.gate = nn.Conv2d(channels, width, 1), nn.Conv2d(channels, width, 1)
        self.around = _depthwise(width, 5)
        self.up = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.around(self.down(x)) * self.gate(x)))


class Frequency(nn.Module):
    """Frequency: (B, channels, H, W) to what is added to it."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1)
        self.around, self.inner = _depthwise(width, 3), nn.Conv2d(width, width, 1)
        self.up = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # there is no FFT in bfloat16
            spectrum = torch.fft.rfft2(self.down(x.to(self.down.weight.dtype)))
            gain = self.inner(F.relu(self.around(spectrum.abs()))).sigmoid()
            return self.up(F.relu(torch.fft.irfft2(spectrum * gain, s=x.shape[2:])))


class SFMA(nn.Module):
    """The adapter of a map: (B, channels, H, W), same shape out."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.spatial, self.frequency = Spatial(channels, width), Frequency(channels, width)
        for up in (self.spatial.up, self.frequency.up):
            for parameter in up.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.spatial(x) + self.frequency(x)


class Modulated(nn.Module):
    """The layers of g_a or g_s, under their own names and shared with the codec, with adapters after some of them."""

    def __init__(self, layers: nn.Module, adapters: nn.ModuleDict):
        super().__init__()
        self.names = []
        for name, layer in layers.named_children():
            self.names.append(name)
            self.add_module(name, layer)
        self.adapters = adapters

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x)
            if name in self.adapters:
                x = self.adapters[name](x)
        return x


@dataclass(frozen=True)
class Adapters:
    """An adapter of a codec: those of g_a and of g_s, by the layer that each follows."""

    sides: Mapping[str, nn.ModuleDict]
    identity: bytes = b""

    def of(self, codec: Any, sides: Sequence[str] = ("g_a", "g_s")) -> Any:
        """A copy of the codec with the adapters of these sides; its own modules are shared."""
        device = next(codec.parameters()).device
        made = {side: Modulated(codec.get_submodule(side), self.sides[side].to(device)) for side in sides}
        return replace_parts(codec, **made)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for side, adapters in self.sides.items():
            yield from adapters.named_parameters(prefix=side)


@torch.no_grad()
def channels(codec: Any) -> dict[str, dict[int, int]]:
    """Of the maps that adapters follow, by side and layer."""
    device = next(codec.parameters()).device
    found: dict[str, dict[int, int]] = {}
    for side, x in (("g_a", torch.zeros(1, 3, 64, 64)), ("g_s", torch.zeros(1, codec.M, 4, 4))):
        x, found[side] = x.to(device), {}
        for i, layer in enumerate(list(codec.get_submodule(side).children())[: AFTER[-1] + 1]):
            x = layer(x)
            if i in AFTER:
                found[side][i] = x.shape[1]
    return found


def build(codec: Any, width: int | None) -> Adapters:
    """New adapters, with seeded random parameters, which change nothing."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        sides = {
            side: nn.ModuleDict({str(i): SFMA(c, width or max(1, c // SHARE)) for i, c in counts.items()})
            for side, counts in channels(codec).items()
        }
    for adapters in sides.values():
        adapters.to(memory_format=torch.channels_last)
    return Adapters(sides)


def make(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], codec: Any) -> Adapters:
    """See `adapter_files.Make`."""
    adapters = build(codec, card.get("width"))
    own = dict(adapters.named_parameters())
    wrong = sorted(own.keys() ^ tensors.keys()) or [k for k in sorted(own) if own[k].shape != tensors[k].shape]
    if wrong:
        raise LoraCompError(f"{path} is not an adapter of {codec.name}: {wrong[0]} does not match its layers")
    for name, value in own.items():
        if not tensors[name].isfinite().all():
            raise LoraCompError(f"{path} holds no adapter that can be used: {name} is not finite; train it again")
        value.data.copy_(tensors[name])
    for side in adapters.sides.values():
        side.eval().requires_grad_(False)
    return replace(adapters, identity=identify(tensors))


class Icmh:
    """A codec with adapters in space and frequency.

    The plain file is written where that has the lower objective: adapters that were trained on other images than this
    may do harm, which nothing else would show.
    """

    name, guarded, target = "icmh", True, None

    def __init__(self, adapters: Adapters):
        self.adapters, self.identity = adapters, adapters.identity
        self.settings: dict[str, Any] = {}

    def prepare(self, codec: Any, x: Tensor, settings: FitSettings = FitSettings()) -> Unfitted:  # noqa: B008
        """See `methods.Method.prepare`. The settings have no effect."""
        return Unfitted(self.adapters.of(codec), x)

    def restore(self, codec: Any, payload: bytes | None) -> Any:
        """See `methods.Method.restore`."""
        if payload is not None:
            raise BitstreamError("the file has a payload, but its method icmh transmits none")
        return self.adapters.of(codec, ["g_s"])


def load(codec: Any, task: str | None = None, **given: Any) -> Icmh:
    """Load Adapt-ICMH with its adapter for a codec; `given` are fields of `IcmhOptions`, task as for
    `adapter_files.choose`.

    Raises LoraCompError without an adapter, for one of other weights, or for options of training.
    """
    options = IcmhOptions(**given)
    if options.width is not None:
        raise LoraCompError("width can be set in training alone: a trained adapter has its own")
    adapters = choose(codec, NAMES, options.adapter, task, make)
    if adapters is None:
        raise LoraCompError(
            f"method=icmh needs an adapter, and none ships for {title(codec.name, codec.rate_point)} and the task "
            f"{task or 'none'}: give a file that lora-comp train wrote as method.adapter=FILE"
        )
    return Icmh(adapters)


def from_file(codec: Any, identity: bytes | None, path: str | Path | None = None) -> Icmh:
    """The method of a file. Raises BitstreamError if its adapter is not available."""
    if identity is None:
        raise BitstreamError("the file is adapted but names no adapter")
    return Icmh(of_identity(codec, identity, NAMES, path, make=make))


class Pretraining:
    """See `methods.method.Pretraining`: all adapters."""

    lr = LR

    def __init__(self, codec: Any, options: IcmhOptions):
        check_new(options)
        self.adapters = build(codec, options.width)
        self.module = self.adapters.of(copy.deepcopy(codec)).requires_grad_(False).train()
        self.trained = dict(self.adapters.named_parameters())
        self.card = {"width": options.width}

    def tensors(self) -> Mapping[str, Tensor]:
        return {name: value.detach() for name, value in self.trained.items()}


SPEC = Spec(load, from_file, IcmhOptions(), Pretraining)
