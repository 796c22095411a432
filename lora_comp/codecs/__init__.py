"""The registry of codecs, and loading of frozen ones. A new codec takes one file and one line of `CODECS`."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_comp import zoo
from lora_comp.codecs.codec import Codec, Latents, Output, Rate, Rounding
from lora_comp.codecs.tic import TIC
from lora_comp.errors import LoraCompError
from lora_comp.settings import setting
from lora_comp.weights import read_weights

__all__ = ["CODECS", "Codec", "Latents", "Output", "Rate", "Rounding", "Spec", "build", "load_codec", "weights_hash"]


@dataclass(frozen=True)
class Spec:
    """An entry of `CODECS`.

    build: returns a new codec, an nn.Module that implements `Codec`, for a rate point.
    qualities: rate points by rising rate.
    weights: path of the weights in the package for a name and a rate point.
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
    """The entry of a codec. Raises LoraCompError for an unknown name or rate point."""
    if name not in CODECS:
        raise LoraCompError(f"unknown codec {name!r}; available are {', '.join(CODECS)}")
    qualities = CODECS[name].qualities
    if quality not in qualities:
        *others, last = (f"{q:g}" for q in qualities)
        raise LoraCompError(f"quality must be {', '.join(others)} or {last}, not {quality}")
    return CODECS[name]


def build(name: str, quality: float = 1, seed: int = 0) -> Any:
    """A new codec with seeded random weights, in training mode. Raises LoraCompError as `spec` does."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return spec(name, quality).build(quality).to(memory_format=torch.channels_last)


@torch.inference_mode(False)
def load_codec(name: str, quality: float, weights: str | Path | None = "default") -> Any:
    """Load a frozen codec in evaluation mode, with attributes `name`, `quality` and `hash` (4 bytes).

    Args:
        name: a name of `CODECS`, such as "tic-s".
        quality: one of its rate points; 1 has the lowest rate.
        weights: "default" for those in the package, path of a safetensors file, or None for seeded random ones.
    Raises:
        LoraCompError: unknown name or quality, or weights that are missing or of another codec.
    """
    entry = spec(name, quality)
    path = entry.weights(name, quality) if weights == "default" else Path(weights or "")
    if weights == "default" and not path.exists():
        raise LoraCompError(
            f"the package has no weights of {name} quality {quality:g}: give a file (codec.weights=PATH), such as one "
            "that `lora-comp import` writes"
        )
    state = None if weights is None else read_weights(path, f"codec {name} quality {quality:g}")[0]
    codec = build(name, quality)
    if state is not None:
        wrong = [key for key, p in codec.named_parameters() if key not in state or state[key].shape != p.shape]
        wrong += [key for key in state if key not in codec.state_dict()]
        if wrong:
            raise LoraCompError(f"{path} does not hold the weights of {name}: {wrong[0]} is missing or does not match")
        codec.load_state_dict(state, strict=False)
    codec.eval().requires_grad_(False)
    codec.name, codec.quality, codec.hash = name, quality, weights_hash(codec)
    return codec


def weights_hash(codec: Any) -> bytes:
    """The first 4 bytes of the SHA-256 of a codec's parameters and its entropy coding tables."""
    digest = hashlib.sha256()
    for name, parameter in sorted(codec.named_parameters()):
        digest.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    for table in codec.coder().tables:
        digest.update(table.tobytes())
    return digest.digest()[:4]
