"""The backbones by name, and how a frozen one is loaded."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch

from lora_comp.codecs.tic import TIC
from lora_comp.entropy.tables import bottleneck_tables, gaussian_tables
from lora_comp.errors import LoraCompError
from lora_comp.settings import setting
from lora_comp.weights import read_weights
from lora_comp.zoo import codec_path

Codec: TypeAlias = TIC  # what methods and coding can rely on
ARCHITECTURES: dict[str, Callable[[], Codec]] = {
    "tic": TIC,
    "tic-s": partial(TIC, N=64, M=96, depths=(0, 2, 4, 2), heads=(4, 4, 4, 6), hyper_heads=4),
}
QUALITIES = (1, 2, 3, 4)


@dataclass(frozen=True)
class CodecConfig:
    name: str
    weights: str | None = setting(
        "default", "default: those that ship; a safetensors file; null: seeded random ones", path=True
    )


def choices() -> dict[str, CodecConfig]:
    """The settings of each codec, with their defaults."""
    return {name: CodecConfig(name) for name in ARCHITECTURES}


def check_name(name: str) -> None:
    if name not in ARCHITECTURES:
        raise LoraCompError(f"there is no codec {name!r}; known are {', '.join(ARCHITECTURES)}")


def build(name: str, seed: int = 0) -> Codec:
    """A new codec with seeded random weights, in training mode. Raises LoraCompError for an unknown name."""
    check_name(name)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return ARCHITECTURES[name]().to(memory_format=torch.channels_last)


def load_codec(name: str, quality: int, weights: str | Path | None = "default") -> Codec:
    """A frozen codec in evaluation mode, with attributes `name`, `quality` and `hash` (4 bytes, of its weights).

    Args:
        name: "tic-s" or "tic".
        quality: rate point, 1 (fewest bits) to 4.
        weights: "default" for those that ship, a path to a safetensors file, or None for seeded random ones.
    Raises:
        LoraCompError: unknown name or quality, or weights that are missing or do not fit.
    """
    check_name(name)
    if quality not in QUALITIES:
        raise LoraCompError(f"quality must be {QUALITIES[0]} to {QUALITIES[-1]}, not {quality}")
    path = codec_path(name, quality) if weights == "default" else Path(weights or "")
    if weights == "default" and not path.exists():
        raise LoraCompError(
            f"no weights of {name} quality {quality} ship here: name a file of them "
            "(codec.weights=PATH), such as `lora-comp import` makes of a published checkpoint"
        )
    state = None if weights is None else read_weights(path, f"codec {name} quality {quality}")[0]
    codec = build(name)
    if state is not None:
        wrong = [key for key, p in codec.named_parameters() if key not in state or state[key].shape != p.shape]
        wrong += [key for key in state if key not in codec.state_dict()]
        if wrong:
            raise LoraCompError(f"{path} does not hold the weights of {name}: see {wrong[0]}")
        codec.load_state_dict(state, strict=False)
    codec.eval().requires_grad_(False)
    codec.name, codec.quality, codec.hash = name, quality, weights_hash(codec)
    return codec


def weights_hash(codec: Codec) -> bytes:
    """The start of the SHA-256 of a codec's parameters and of the tables its files are coded with: 4 bytes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(codec.named_parameters()):
        digest.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    for table in (*bottleneck_tables(codec.entropy_bottleneck), *gaussian_tables()):
        digest.update(table.tobytes())
    return digest.digest()[:4]
