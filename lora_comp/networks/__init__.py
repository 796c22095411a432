"""Frozen task networks: classifiers, detectors and segmenters that ship or come from a library, and any network in a
file. `protocol` says what a task may ask of them.

A family of networks is one module of this package and one line of a registry below: the form of its names, and the
module, which has
    read(name, weights)          -> external.Source      for NETWORKS
    load(name, weights, masks)   -> protocol.Detector    for DETECTORS
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from lora_comp import zoo
from lora_comp.errors import LoraCompError
from lora_comp.networks.byte_input import expects_bytes
from lora_comp.networks.external import SIDES, ExternalNetwork, Source, photos
from lora_comp.networks.input import Input, read_input
from lora_comp.networks.protocol import Classifier, Detector, TaskNetwork
from lora_comp.networks.resnet import SmallResNet
from lora_comp.networks.saved import save_network
from lora_comp.networks.taps import freeze

__all__ = [
    "Classifier",
    "Detector",
    "ExternalNetwork",
    "SmallResNet",
    "TaskNetwork",
    "load_detector",
    "load_external",
    "load_network",
    "save_network",
]


class Family(NamedTuple):
    """Networks that one module loads: the form of their names, shown to users and as a pattern."""

    form: str
    pattern: str
    module: str


SHIPPED = zoo.classifiers()
NETWORKS = (
    Family(", ".join(SHIPPED), "|".join(map(re.escape, SHIPPED)), "resnet"),
    Family("timm/NAME", r"timm/.+", "timm"),
    Family("torchvision/NAME", r"torchvision/.+", "torchvision"),
    Family("FILE.onnx", r".+(?i:\.onnx)", "onnx"),
    Family("FILE.pt or .ts (TorchScript)", r".+\.(?i:pt|ts|pth|torchscript|jit)", "torchscript"),
    Family("FILE.pt2 (torch.export)", r".+(?i:\.pt2)", "export"),
    Family("MODULE:FUNCTION", r"[\w.]+:\w+", "function"),
    Family("the path of a file of lora_comp.train", "", "resnet"),
)
DETECTORS = (
    Family("scenes", r"scenes", "rcnn"),
    Family("torchvision/NAME", r"torchvision/.+", "torchvision_detection"),
    Family("detectron2/CONFIG", r"detectron2/.+", "detectron2"),
    Family("transformers/NAME", r"transformers/.+", "detr"),
    Family("the path of a file of lora_comp.train", "", "rcnn"),
)


def _module(families: Sequence[Family], name: str, what: str) -> ModuleType:
    """The module that loads a name: of the first family whose pattern it fits, or of the last one for any file."""
    named = next((family for family in families if re.fullmatch(family.pattern, name)), None)
    if named is None and any(re.fullmatch(family.pattern, name) for family in NETWORKS):
        raise LoraCompError(f"{name!r} is not known to be a {what}; task=open takes any network")
    if named is None and Path(name).is_file():
        named = families[-1]
    if named is None:
        forms = ", ".join(family.form for family in families)
        raise LoraCompError(f"unknown {what} {name!r}{_library(name)}; known are {forms}")
    return import_module(f"{__name__}.{named.module}")


def _library(name: str) -> str:
    """Which libraries have a network of this name, as a question."""
    import timm
    import torchvision

    lists = {"torchvision": torchvision.models.list_models(), "timm": timm.list_models()}
    having = [f"{library}/{name}" for library, names in lists.items() if name in names]
    return f"; did you mean {' or '.join(having)}?" if having else ""


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random weights come from the seed; the caller's generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _read(name: str, weights: str | os.PathLike | None) -> Source:
    return _module(NETWORKS, name, "network").read(name, weights)


def load_network(
    name: str | os.PathLike, weights: str | os.PathLike | None = "default", seed: int = 0
) -> SmallResNet | ExternalNetwork:
    """A frozen classifier: "scenes", "flowers" (they ship), "timm/NAME", "torchvision/NAME", or the path of a file that
    `save_network` wrote.

    weights: "default" is what ships or what the library publishes (and downloads), None random ones from `seed`,
    anything else a checkpoint file of that architecture.
    Raises LoraCompError, in one line, for an unknown name, a network that is not a classifier, and weights that are
    missing or do not fit.
    """
    with _seeded(seed):
        source = _read(str(name), weights)
        if not source.classifier:
            raise LoraCompError(f"{str(name)!r} is not known to be a classifier; task=open takes any network")
        model = source.taps.module
        return model if isinstance(model, SmallResNet) else ExternalNetwork(str(name), source, source.input)


def load_external(
    name: str | os.PathLike,
    weights: str | os.PathLike | None = "default",
    layers: Sequence[str] | None = None,
    settings: Mapping | str | os.PathLike | None = None,
) -> ExternalNetwork:
    """Any frozen network, with the variance of its stages measured on photographs.

    TorchScript files and MODULE:FUNCTION run code of their author's choice: take them only from people you trust. ONNX
    files do not.

    Args:
        name: a name of one of the `NETWORKS`. MODULE:FUNCTION is called without arguments and returns an nn.Module; the
            current folder is on its path.
        weights: see `load_network`; files and functions have their own.
        layers: names of the tensors to compare; None to find them (`stages.find_stages`).
        settings: the input it expects, see `input.read_input`; the default is the network's own, or RGB in [0, 1] at
            the image's size; in 0 to 255 if its first steps are to divide by 255, or to subtract a mean of bytes.
    Raises:
        LoraCompError, in one line: a file or name that is no network, a network that cannot be converted, does not run
        on a photograph, returns no tensor or has no gradient to its input, and unknown layers or settings.
    """
    with _seeded(0):
        source = _read(str(name), weights)
        own = source.input
        if replace(own, size=None) == Input():  # neither its library nor the file says what it expects
            image = photos(read_input(settings, own).size or (SIDES[0],) * 2)[:1]
            own = replace(own, range=255.0 if expects_bytes(source.taps.answer, image) else 1.0)
        network = ExternalNetwork(str(name), source, read_input(settings, own), layers)
        network.stage_variance = network.measure_variance()
    return network


def load_detector(
    name: str | os.PathLike,
    weights: str | os.PathLike | None = "default",
    masks: bool = False,
    seed: int = 0,
) -> Detector:
    """A frozen detector, or with `masks` one that also segments.

    name: "scenes" (ships), "torchvision/NAME", "detectron2/CONFIG", "transformers/NAME", or the path of a file that
    `save_network` wrote. weights: see `load_network`.
    Raises LoraCompError, in one line, for an unknown name, a library that is not installed, and weights that are
    missing or do not fit.
    """
    with _seeded(seed):
        network = _module(DETECTORS, str(name), "detector").load(str(name), weights, masks)
    if masks and not network.has_masks:
        raise LoraCompError(
            f"the detector {str(name)!r} has no masks; task=seg needs one that segments, as scenes or "
            "torchvision/maskrcnn_resnet50_fpn"
        )
    freeze(network)
    return network
