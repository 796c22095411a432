"""The registry of methods, which adapt a codec to an image and a task.

A new method takes one file and one line of `METHODS`. "none" is the plain codec, represented by None.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lora_comp.codecs import CODECS
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods import alice, calice, svd_lora, transtic
from lora_comp.methods.annealing import Annealed, annealed, steps_of
from lora_comp.methods.method import STEPS, Adapted, FitSettings, Method, Spec
from lora_comp.settings import NoOptions
from lora_comp.weights import read_weights

__all__ = [
    "METHODS",
    "NONE",
    "STEPS",
    "Adapted",
    "Annealed",
    "FitSettings",
    "Method",
    "Spec",
    "annealed",
    "frozen_quality",
    "load_method",
    "method_of_file",
    "steps_of",
]

NONE = "none"
METHODS: dict[str, Spec] = {
    "svd_lora": svd_lora.spec("svd_lora", svd_lora.LowRankOptions()),
    "lora": svd_lora.spec("lora", svd_lora.LowRankOptions(exponent=8)),
    "alice": alice.SPEC,
    "calice": calice.SPEC,
    "transtic": transtic.SPEC,
}


def choices() -> dict[str, Any]:
    """What can be set of each method: a dataclass, or an instance with its defaults."""
    return {NONE: NoOptions, **{name: spec.options for name, spec in METHODS.items()}}


@dataclass(frozen=True)
class Several:
    """What can be set of several methods that are evaluated side by side: the options of each, by its name."""

    parts: dict[str, Any]


def combine(parts: Mapping[str, Any]) -> Several:
    return Several(dict(parts))


@torch.inference_mode(False)
def load_method(name: str, codec: Any, task: str | None = None, **options: Any) -> Method | None:
    """Load a method for a codec; None for "none".

    Args:
        name: "none" or a name of `METHODS`.
        codec: from `load_codec`.
        task: key of the task, which selects a pre-trained adapter.
        options: fields of `METHODS[name].options`.
    Raises:
        LoraCompError: an unknown name or option, or a value out of range.
    """
    if name == NONE:
        return None
    if name not in METHODS:
        raise LoraCompError(f"unknown method {name!r}; available are {', '.join((NONE, *METHODS))}")
    names = [field.name for field in fields(METHODS[name].options)]
    if unknown := sorted(set(options) - set(names)):
        raise LoraCompError(f"the method {name!r} takes {', '.join(names) or 'no options'}, not {', '.join(unknown)}")
    return METHODS[name].load(codec, task, **options)


def frozen_quality(codec: str, name: str, adapter: str | None = None, **options: Any) -> float | None:
    """The quality of the codec that a method moves to others: that of its adapter's card, by default the highest. None
    for a method that codes at the quality of its codec. Raises LoraCompError for an adapter that cannot be read.

    codec: its name. name, adapter, options: as of `load_method`.
    """
    if name not in METHODS or not METHODS[name].moves:
        return None
    card = {} if adapter is None else read_weights(Path(adapter), "the adapter")[1]
    highest = CODECS[codec].qualities[-1]
    return card.get("quality", highest) if card.get("codec") == codec else highest


def method_of_file(name: str, identity: bytes | None, codec: Any, adapter: str | Path | None = None) -> Method:
    """The method of a file, with the adapter of this identity.

    adapter: path of an adapter that is not in the package.
    Raises:
        BitstreamError: an unknown method, or an adapter that is not available.
    """
    if name not in METHODS:
        raise BitstreamError(f"the file uses the method {name!r}, which this lora_comp cannot decode; update it")
    return METHODS[name].from_file(codec, identity, adapter)
