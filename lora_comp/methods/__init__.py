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
from lora_comp.methods import alice, calice, icmh, svd_lora, transtic
from lora_comp.methods.annealing import Annealed, annealed, steps_of
from lora_comp.methods.method import STEPS, Adapted, FitSettings, Method, Spec
from lora_comp.methods.stacked import Stacked
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
    "Stacked",
    "annealed",
    "frozen_quality",
    "load_method",
    "method_of_adapter",
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
    "icmh": icmh.SPEC,
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
        options: fields of `METHODS[name].options`. With `base`, the file of an adapter of another method, the method is
            one on top of that (`methods.stacked`).
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
    method, base = METHODS[name].load(codec, task, **options), options.get("base")
    if base is None:
        return method
    return Stacked(method, METHODS[method_of_base(base)].load(codec, task, adapter=base))


def method_of_adapter(path: str | Path) -> str:
    """The method that a file has an adapter of. Raises LoraCompError for another file."""
    card = read_weights(Path(path), "the adapter")[1]
    if "codec_hash" not in card:
        raise LoraCompError(f"{path} is not an adapter that lora-comp train wrote")
    return card.get("method", "svd_lora")


def method_of_base(path: str) -> str:
    """The same, for a method that another one can be fitted on top of. Raises LoraCompError for another one too."""
    name = method_of_adapter(path)
    bases = [known for known, spec in METHODS.items() if "base" not in {field.name for field in fields(spec.options)}]
    if name not in bases:
        raise LoraCompError(f"{path} is an adapter of the method {name}, and base takes one of {', '.join(bases)}")
    return name


def frozen_quality(
    codec: str, name: str, adapter: str | None = None, base: str | None = None, **options: Any
) -> float | None:
    """The quality of the codec that a method moves to others: that of its adapter's card, by default the highest. None
    for a method that codes at the quality of its codec. Raises LoraCompError for an adapter that cannot be read.

    codec: its name. name, adapter, base, options: as of `load_method`.
    """
    if base is not None:
        name, adapter = method_of_base(base), base
    if name not in METHODS or not METHODS[name].moves:
        return None
    card = {} if adapter is None else read_weights(Path(adapter), "the adapter")[1]
    highest = CODECS[codec].qualities[-1]
    return card.get("quality", highest) if card.get("codec") == codec else highest


def method_of_file(
    name: str,
    identity: bytes | None,
    codec: Any,
    adapter: str | Path | None = None,
    base: tuple[str, bytes] | None = None,
    base_adapter: str | Path | None = None,
) -> Method:
    """The method of a file, with the adapter of this identity, on top of its base, if it has one.

    adapter, base_adapter: paths of adapters that are not in the package. Of a file without a base, `base_adapter` is
        the adapter: it may be that of the base alone (`api.encode`).
    Raises:
        BitstreamError: an unknown method, or an adapter that is not available.
    """
    if base is not None:
        return Stacked(method_of_file(name, identity, codec, adapter), _base_of_file(*base, codec, base_adapter))
    if name not in METHODS:
        raise BitstreamError(f"the file uses the method {name!r}, which this lora_comp cannot decode; update it")
    return METHODS[name].from_file(codec, identity, base_adapter or adapter)


def _base_of_file(name: str, identity: bytes, codec: Any, adapter: str | Path | None) -> Method:
    try:
        return method_of_file(name, identity, codec, adapter)
    except BitstreamError:
        if adapter or name not in METHODS:
            raise
        raise BitstreamError(
            f"the file stands on the adapter {identity.hex()} of {name}, which is not available: give its file as "
            "base=PATH"
        ) from None
