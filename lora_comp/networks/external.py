"""A network written elsewhere, of a library or in a file, and the tensors of it that are compared."""

import difflib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_comp.data.folders import photograph
from lora_comp.errors import LoraCompError, first_line
from lora_comp.networks.input import Fit, Input, Preparation
from lora_comp.networks.stages import find_stages, usable
from lora_comp.networks.taps import Graph, Modules, Probe, Script

LEAST_SIDE = 64  # pixels; several classifiers cannot halve a smaller image five times
# Of the images on which a network without a size of its own is tried.
SIDES = (256, 224, 384, 512, 640, 160, 192, 240, 288, 299, 320, 336, 448, 480, 518, 128, 96, 64, 32)
STEPS = (32, 64, 128)  # pixels, to multiples of which images are padded
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
Answer = TypeVar("Answer")


@dataclass
class Source:
    """A network as it was read.

    input: the input it expects. one_image: it takes one image at a time.
    stages: names of its stages, where its library lists them. classifier: it returns logits (B, classes).
    least_side: smaller images are enlarged until their shorter side has so many pixels. usual: the size (H, W) that it
        was made for, where it takes others too.
    names: for each of its classes the names it goes by, the one to show first; empty where they are not known.
    """

    taps: Modules | Graph | Script
    input: Input = field(default_factory=Input)
    one_image: bool = False
    stages: Sequence[str] = ()
    classifier: bool = False
    least_side: int = 1
    usual: tuple[int, int] | None = None
    names: Sequence[tuple[str, ...]] = ()


def check_file(name: str, weights: str | os.PathLike | None) -> Path:
    """The path of a file that holds a network with its weights."""
    if not Path(name).is_file():
        raise LoraCompError(f"there is no file {name}")
    if weights != "default":
        raise LoraCompError(f"{name} holds its weights: leave out weights={weights}")
    return Path(name)


class ExternalNetwork(nn.Module):
    """A network whose stages are found by `find_stages`, or named.

    name: what it was loaded by. aliases: for each class all its names, of which `classes` has the first.
    layers: names of the tensors that `stages` returns, in order of computation.
    probed: the size (H, W) of the image on which they were found.
    settings: the input it gets. layers: names of tensors, or None.
    """

    def __init__(self, name: str, source: Source, settings: Input, layers: Sequence[str] | None = None):
        super().__init__()
        self.name, self.aliases = name, source.names
        self.classes = [names[0] for names in source.names]
        self.stage_variance: list[float] | None = None
        self.taps, self.one_image = source.taps, source.one_image
        self.prepare = Preparation(settings, source.least_side)
        self.probed, probe = self._first_probe()
        self.usual = source.usual or self.probed
        if layers is None:
            self.layers = find_stages(probe, self.probed, source.stages, source.classifier)
        else:
            self.layers = self._known(probe, layers)
        if not self.layers:
            raise LoraCompError(f"no layer of {name} has a gradient to the image, so there is nothing to compare")
        self.taps.keep(self.layers)
        self.one_image = self.one_image or not self._takes_two()

    def _first_probe(self) -> tuple[tuple[int, int], Probe]:
        """The size of image that it takes, and what it computes from one. A network that refuses the first of `SIDES`
        but takes another has that one for its size."""
        named = self.prepare.wanted.size
        refused: list[Exception] = []
        for size in [named] if named else [(side, side) for side in SIDES]:
            try:
                with torch.enable_grad():
                    probe = self.taps.probe(self.prepare(photos(size)[:1].requires_grad_()))
            except Exception as error:  # whatever the network's own code raises
                refused.append(error)
                continue
            if not probe.outputs:
                raise LoraCompError(f"{self.name} returns no tensor, so there is nothing to compare")
            if refused:
                self.prepare.wanted = replace(self.prepare.wanted, size=size)
            return size, probe
        tried = "x".join(map(str, named or (SIDES[0],) * 2))
        raise LoraCompError(
            f"{self.name} does not run on an image of {tried}: {first_line(refused[0])}; if it takes "
            "another size, set it: task.input.size=[HEIGHT,WIDTH]"
        )

    def _known(self, probe: Probe, layers: Sequence[str]) -> list[str]:
        """The layers asked for, in order of computation."""
        known, asked = usable(probe), dict[str, str]()
        for given in map(str, layers):
            parts = probe.parts(given)
            if not any(name in known for name in parts):
                close = difflib.get_close_matches(given, known, 4, 0) or list(known)[:4]
                why = "has no gradient to the image" if parts else "is unknown"
                raise LoraCompError(
                    f"the layer {given!r} of {self.name} {why}; there are {len(known)}, such as {', '.join(close)}"
                )
            asked |= {name: given if given in probe.aliases else name for name in parts}
        return [asked[name] for name in known if name in asked]

    @torch.no_grad()
    def _takes_two(self) -> bool:
        """Whether two images together give the features that each gives alone."""
        one, two = photos(self.probed)[:2].split(1)
        try:
            together = self.taps.kept(self.prepare(torch.cat([one, two])))
        except Exception:
            return False
        return all(
            len(both) == 2 and torch.allclose(both[1:], alone, atol=1e-2 * float(alone.std()))
            for both, alone in zip(together, self.taps.kept(self.prepare(two)), strict=True)
        )

    @torch.no_grad()
    def measure_variance(self) -> list[float]:
        """The variance of the numbers of each stage on photographs."""
        each = [self.stages(photo[None]) for photo in photos(self.probed)]
        return [float(torch.cat([stage.flatten() for stage in same]).var()) for same in zip(*each, strict=True)]

    @property
    def identity(self) -> str:
        """Its name and a checksum of all that its features depend on."""
        variance = [f"{v:.3g}" for v in self.stage_variance or []]
        facts = [self.name, self.layers, self.prepare.wanted, variance]
        return f"{Path(self.name).stem}-{zlib.crc32(repr(facts).encode()):08x}"

    @property
    def model(self) -> nn.Module:
        """The network itself."""
        return self.taps.module

    @property
    def stage_modules(self) -> list[nn.Module]:
        """The submodules whose outputs are compared, where hooks read them."""
        parts = dict(self.model.named_modules()) if isinstance(self.taps, Modules) else {}
        return [parts[name] for name in self.layers if name in parts]

    def stages(self, x: Tensor) -> list[Tensor]:
        return self._fitted(x, self._kept)

    def _kept(self, x: Tensor) -> list[Tensor]:
        if self.one_image and len(x) > 1:
            each = [self.taps.kept(self.prepare(image)) for image in x.split(1)]
            return [torch.cat(same) for same in zip(*each, strict=True)]
        return self.taps.kept(self.prepare(x))

    def forward(self, x: Tensor) -> Any:
        """What the network itself returns, of one image if it takes no more."""
        return self._fitted(x, lambda x: self.taps.answer(self.prepare(x)))

    def _fitted(self, x: Tensor, compute: Callable[[Tensor], Answer]) -> Answer:
        """What is computed from images; of a size that the network cannot take, at the first of `_fits` that it can,
        and from then on always so. Raises LoraCompError, in one line, if there is none."""
        try:
            return compute(x)
        except Exception as error:  # whatever the network's own code raises
            refused = error
        size = self.prepare.enlarged(x)
        for fit in [] if size in self.prepare.fits or _is_memory(refused) else self._fits(size):
            self.prepare.fits[size] = fit
            try:
                return compute(x)
            except Exception:
                del self.prepare.fits[size]
        what = f"{self.name} cannot take an image of {x.shape[2]}x{x.shape[3]}: {first_line(refused)}"
        wanted = self.prepare.wanted.size
        resized = f"; its input is resized to {wanted[0]}x{wanted[1]}" if wanted else ""
        raise LoraCompError(what + resized) from refused

    def _fits(self, size: tuple[int, int]) -> list[Fit]:
        """How images of a size that the network cannot take may be changed: padded to multiples, or resized to the size
        that the network was made for, or else to one that it takes."""
        if self.prepare.wanted.size:
            return []
        padded = [Fit((-(-size[0] // step) * step, -(-size[1] // step) * step), pads=True) for step in STEPS]
        return [fit for fit in dict.fromkeys(padded) if fit.size != size] + [Fit(self.usual), Fit(self.probed)]


def _is_memory(error: Exception) -> bool:
    """Whether it says that there is not enough memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def photos(size: tuple[int, int]) -> Tensor:
    """Photographs to measure a network on: (4, 3, H, W)."""
    return torch.cat(
        [
            F.interpolate(
                torch.from_numpy(photograph(name)).permute(2, 0, 1)[None].float() / 255,
                size,
                mode="bilinear",
                antialias=True,
            )
            for name in PHOTOS
        ]
    )
