"""The codecs by name, and how a frozen one is loaded. A codec is one file and one line of `CODECS`."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_comp import zoo
from lora_comp.codecs.codec import Codec, Latents, Output, Rate
from lora_comp.codecs.tic import TIC
from lora_comp.errors import LoraCompError
from lora_comp.settings import setting
from lora_comp.weights import read_weights

__all__ = ["CODECS", "Codec", "Latents", "Output", "Rate", "Spec", "build", "load_codec", "weights_hash"]


@dataclass(frozen=True)
class Spec:
    """How a codec is made: an nn.Module that is a `Codec`, by its rate point.

    qualities: its rate points, fewest bits first. weights: where the package has those of a name and a rate point.
    """

    build: Callable[[float], Any]
    qualities: tuple[float, ...] = (1, 2, 3, 4)
    weights: Callable[[str, float], Path] = zoo.codec_path


CODECS: dict[str, Spec] = {
    "tic": Spec(lambda quality: TIC()),
    "tic-s": Spec(lambda quality: TIC(N=64, M=96, depths=(0, 2, 4, 2), heads=(4, 4, 4, 6), hyper_heads=4)),
}


@dataclass(frozen=True)
class CodecOptions:
    weights: str | None = setting(
        "default", "default: those of the package; a safetensors file; null: seeded random ones", path=True
    )


def choices() -> dict[str, type]:
    """What can be set of each codec."""
    return dict.fromkeys(CODECS, CodecOptions)


def spec(name: str, quality: float) -> Spec:
    """Raises LoraCompError for an unknown name or rate point."""
    if name not in CODECS:
        raise LoraCompError(f"there is no codec {name!r}; known are {', '.join(CODECS)}")
    known = CODECS[name].qualities
    if quality not in known:
        *others, last = (f"{q:g}" for q in known)
        raise LoraCompError(f"quality must be {', '.join(others)} or {last}, not {quality}")
    return CODECS[name]


def build(name: str, quality: float = 1, seed: int = 0) -> Any:
    """A new codec with seeded random weights, in training mode. Raises LoraCompError as `spec` does."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return spec(name, quality).build(quality).to(memory_format=torch.channels_last)


def load_codec(name: str, quality: float, weights: str | Path | None = "default") -> Any:
    """A frozen codec in evaluation mode, with attributes `name`, `quality` and `hash` (4 bytes, of its weights).

    Args:
        name: a name of `CODECS`, as "tic-s".
        quality: one of its rate points, from 1 (fewest bits) on.
        weights: "default" for those in the package, a path to a safetensors file, or None for seeded random ones.
    Raises:
        LoraCompError: unknown name or quality, or weights that are missing or do not fit.
    """
    known = spec(name, quality)
    path = known.weights(name, quality) if weights == "default" else Path(weights or "")
    if weights == "default" and not path.exists():
        raise LoraCompError(
            f"the package has no weights of {name} quality {quality:g}: name a file of them "
            "(codec.weights=PATH), such as `lora-comp import` makes of a published checkpoint"
        )
    state = None if weights is None else read_weights(path, f"codec {name} quality {quality:g}")[0]
    codec = build(name, quality)
    if state is not None:
        wrong = [key for key, p in codec.named_parameters() if key not in state or state[key].shape != p.shape]
        wrong += [key for key in state if key not in codec.state_dict()]
        if wrong:
            raise LoraCompError(f"{path} does not hold the weights of {name}: see {wrong[0]}")
        codec.load_state_dict(state, strict=False)
    codec.eval().requires_grad_(False)
    codec.name, codec.quality, codec.hash = name, quality, weights_hash(codec)
    return codec


def weights_hash(codec: Any) -> bytes:
    """The start of the SHA-256 of a codec's parameters and of the tables its files are coded with: 4 bytes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(codec.named_parameters()):
        digest.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    for table in codec.coder().tables:
        digest.update(table.tobytes())
    return digest.digest()[:4]
