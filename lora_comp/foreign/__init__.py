"""Networks that the package has never seen, behind the one interface of `lora_comp.networks`."""

import difflib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_comp.data.folders import photograph
from lora_comp.errors import LoraCompError
from lora_comp.foreign.image import Input, Preparation, read_input
from lora_comp.foreign.layers import pick, usable
from lora_comp.foreign.read import Found, first_line, read_network
from lora_comp.foreign.taps import Modules, Probe

SIDES = (256, 224, 384, 512, 640)  # of the images on which a network that names no size is tried
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def load_foreign(
    network: str | os.PathLike,
    weights: str | os.PathLike | None = "default",
    layers: Sequence[str] | None = None,
    settings: Mapping | str | os.PathLike | None = None,
) -> "ForeignNetwork":
    """A frozen network and the tensors in it to match.

    TorchScript files and `module:function` run code of their author's choice: take them from whom you trust. ONNX files
    do not.

    Args:
        network: an ONNX file (.onnx), a TorchScript file (.pt, .ts), a torch.export file (.pt2), timm/NAME,
            torchvision/NAME, module:function (called without arguments, gives an nn.Module; the current folder is on
            the path), or what `networks.load_network` takes.
        weights: of timm's and torchvision's, as for `networks.load_network`.
        layers: names of the tensors to match; None picks them (`layers.pick`).
        settings: how it wants images, see `image.read_input`; what is not told is the network's own, or RGB in
            [0, 1] at the image's size.
    Raises:
        LoraCompError, in one line: a file or name that is none, a network that cannot be converted, does not run on a
        photograph, returns no tensor or has no gradient to its input, and layers or settings that are not known.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = read_network(network, weights)
        return ForeignNetwork(str(network), found, read_input(settings, found.own), layers)


class ForeignNetwork(nn.Module):
    """A network that takes images (B, 3, H, W) in [0, 1], and what of it is matched.

    layers: names of the tensors that `stages` gives, in order of computation.
    identity: its name and a checksum of all that its features depend on.
    probed: the size (H, W) of image by which its layers were found.
    """

    def __init__(self, name: str, found: Found, wanted: Input, layers: Sequence[str] | None = None):
        super().__init__()
        self.name, self.classes = name, list[str]()
        self.taps, self.alone = found.taps, found.alone
        self.prepare = Preparation(wanted, found.channels_last)
        self.probed, probe = self._first_probe()
        size = self.probed
        self.layers = pick(probe, size) if layers is None else self._known(probe, layers)
        if not self.layers:
            raise LoraCompError(f"no layer of {name} has a gradient to the image, so there is nothing to match")
        self.taps.keep(self.layers)
        self.stage_variance = self._variance(size)
        self.alone = self.alone or not self._takes_two(size)
        facts = [name, self.layers, self.prepare.wanted, [f"{v:.3g}" for v in self.stage_variance]]
        self.identity = f"{Path(name).stem}-{zlib.crc32(repr(facts).encode()):08x}"

    def _first_probe(self) -> tuple[tuple[int, int], Probe]:
        """The size of image that it takes, and what it computes of such a one. A network that refuses the first of
        `SIDES` but takes another has that one for its size."""
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
                raise LoraCompError(f"{self.name} returns no tensor: lora_comp matches those that a network makes")
            if refused:
                self.prepare.wanted = replace(self.prepare.wanted, size=size)
            return size, probe
        told = "x".join(map(str, named or (SIDES[0],) * 2))
        raise LoraCompError(
            f"{self.name} does not run on an image of {told}: {first_line(refused[0])}; if it takes "
            "another size, tell it: task.input.size=[HEIGHT,WIDTH]"
        )

    def _known(self, probe: Probe, layers: Sequence[str]) -> list[str]:
        """The layers asked for, in order of computation."""
        found = usable(probe)
        for name in layers:
            if name not in found:
                close = difflib.get_close_matches(str(name), found, 4, 0) or list(found)[:4]
                why = "has no gradient to the image" if name in probe.tensors else "is unknown"
                raise LoraCompError(
                    f"the layer {name!r} of {self.name} {why}; there are {len(found)}, such as {', '.join(close)}"
                )
        return [name for name in found if name in layers]

    @torch.no_grad()
    def _variance(self, size: tuple[int, int]) -> list[float]:
        """Of the numbers of each layer on photographs."""
        each = [self.stages(photo[None]) for photo in photos(size)]
        return [float(torch.cat([stage.flatten() for stage in same]).var()) for same in zip(*each, strict=True)]

    @torch.no_grad()
    def _takes_two(self, size: tuple[int, int]) -> bool:
        """Whether two images together give what each gives alone."""
        one, two = photos(size)[:2].split(1)
        try:
            together = self.taps.kept(self.prepare(torch.cat([one, two])))
        except Exception:
            return False
        return all(
            len(both) == 2 and torch.allclose(both[1:], alone, atol=1e-2 * float(alone.std()))
            for both, alone in zip(together, self.taps.kept(self.prepare(two)), strict=True)
        )

    @property
    def stage_modules(self) -> dict[str, nn.Module]:
        """Those parts that give a tensor which is matched, where hooks catch it: they must stay as they are."""
        parts = dict(self.taps.module.named_modules()) if isinstance(self.taps, Modules) else {}
        return {name: parts[name] for name in self.layers if name in parts}

    def stages(self, x: Tensor) -> list[Tensor]:
        """The tensors of `layers`, (B, ...) each."""
        with self._telling(x):
            if self.alone and len(x) > 1:
                each = [self.taps.kept(self.prepare(image)) for image in x.split(1)]
                return [torch.cat(same) for same in zip(*each, strict=True)]
            return self.taps.kept(self.prepare(x))

    def forward(self, x: Tensor) -> Any:
        """What the network itself returns, of one image if it takes no more."""
        with self._telling(x):
            return self.taps.answer(self.prepare(x))

    @contextmanager
    def _telling(self, x: Tensor) -> Iterator[None]:
        """Tell in one line of an image that the network cannot take."""
        try:
            yield
        except Exception as error:  # whatever the network's own code raises
            height, width = x.shape[2:]
            what = f"{self.name} cannot take an image of {height}x{width}: {first_line(error)}"
            sizes = [(-(-height // 32) * 32, -(-width // 32) * 32), *((side, side) for side in (32, 64, 128, *SIDES))]
            fits = None if self.prepare.wanted.size else next(filter(self._runs, sizes), None)
            if fits:
                what += f"; it takes {fits[0]}x{fits[1]}: resize to that by task.input.size=[{fits[0]},{fits[1]}]"
            raise LoraCompError(what) from error

    @torch.no_grad()
    def _runs(self, size: tuple[int, int]) -> bool:
        try:
            self.taps.answer(self.prepare(photos(size)[:1].to(self.prepare.mean.device)))
        except Exception:
            return False
        return True


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
