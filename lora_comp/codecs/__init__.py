"""The registry of codecs, and loading of frozen ones. A new codec takes one file and one line of `CODECS`."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_comp import zoo
from lora_comp.bitstream import SIXTEENTHS
from lora_comp.codecs.codec import Codec, Latents, Output, Rate, code_length, title
from lora_comp.codecs.stf import STF, STF_S
from lora_comp.codecs.tic import TIC
from lora_comp.codecs.tic_v import TICV
from lora_comp.errors import LoraCompError
from lora_comp.settings import setting
from lora_comp.weights import read_weights

__all__ = [
    "CODECS",
    "Codec",
    "Latents",
    "Output",
    "Rate",
    "Spec",
    "at_quality",
    "build",
    "code_length",
    "load_codec",
    "load_codecs",
    "weights_hash",
]


@dataclass(frozen=True)
class Spec:
    """An entry of `CODECS`.

    build: returns a new codec, an nn.Module that implements `Codec`, at a quality.
    qualities: rate points by rising rate.
    weights: path of the weights in the package for a name and a rate point, or None for all rates.
    variable: one set of weights serves every quality from the first to the last in steps of 1/16, and the codec has
        `at(quality)`, which returns it at another one, and `unscaled(x)`, the same at all of them, of which
        `latents(x)` is `latents_from(scaled(unscaled(x)))`. The predictions of its `rate` have the "means" of y.
    """

    build: Callable[[float], Any]
    qualities: tuple[float, ...] = (1, 2, 3, 4)
    weights: Callable[[str, float | None], Path] = zoo.codec_path
    variable: bool = False


CODECS: dict[str, Spec] = {
    "tic": Spec(lambda quality: TIC()),
    "tic-v": Spec(lambda quality: TICV().at(quality), (1, 2, 3, 4, 5, 6), variable=True),
    "stf": Spec(lambda quality: STF(), (1, 2, 3, 4, 5, 6)),
    "stf-s": Spec(lambda quality: STF(**STF_S), (1, 2, 3, 4, 5, 6)),
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
    entry = CODECS[name]
    first, *_, last = entry.qualities
    if entry.variable and not first <= quality <= last:
        raise LoraCompError(f"quality must be a number from {first:g} to {last:g}, not {quality:g}")
    if not entry.variable and quality not in entry.qualities:
        others = ", ".join(f"{q:g}" for q in entry.qualities[:-1])
        raise LoraCompError(f"quality must be {others} or {last:g}, not {quality:g}")
    return entry


def nearest(name: str, quality: float) -> float:
    """A quality as files hold it, in sixteenths, an int where it is whole. Raises LoraCompError as `spec` does."""
    spec(name, quality)
    return in_sixteenths(quality)


def in_sixteenths(quality: float) -> float:
    """A quality to the nearest sixteenth, an int where it is whole."""
    quality = round(quality * SIXTEENTHS) / SIXTEENTHS
    return int(quality) if quality == int(quality) else quality


def at_quality(codec: Any, quality: float) -> Any:
    """A loaded codec at another quality, to the nearest sixteenth; weights are shared.

    Raises LoraCompError for a quality that it has not, and for a codec whose rate points have weights of their own.
    """
    quality = nearest(codec.name, quality)
    if quality == codec.quality:
        return codec
    if codec.rate_point is not None:
        raise LoraCompError(f"{codec.name} has other weights for every rate point: load it with quality={quality:g}")
    return codec.at(quality)


def load_codecs(name: str, qualities: Sequence[float], weights: str | Path | None = "default") -> dict[float, Any]:
    """`load_codec` for several qualities, by quality; a codec of variable rate is loaded once."""
    codecs: dict[float, Any] = {}
    for quality in qualities:
        first = next(iter(codecs.values()), None)
        one = (
            at_quality(first, quality) if spec(name, quality).variable and first else load_codec(name, quality, weights)
        )
        codecs[one.quality] = one
    return codecs


def build(name: str, quality: float = 1, seed: int = 0) -> Any:
    """A new codec with seeded random weights, in training mode. Raises LoraCompError as `spec` does."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return spec(name, quality).build(quality).to(memory_format=torch.channels_last)


@torch.inference_mode(False)
def load_codec(name: str, quality: float, weights: str | Path | None = "default") -> Any:
    """Load a frozen codec in evaluation mode, with attributes `name`, `quality`, `rate_point` and `hash` (4 bytes).

    Args:
        name: a name of `CODECS`, such as "tic-v".
        quality: one of its rate points; 1 has the lowest rate. A codec of variable rate, such as "tic-v", has all
            numbers between, to the nearest sixteenth.
        weights: "default" for those in the package, path of a safetensors file, or None for seeded random ones.
    Raises:
        LoraCompError: unknown name or quality, or weights that are missing or of another codec.
    """
    entry, quality = spec(name, quality), nearest(name, quality)
    rate_point = None if entry.variable else quality
    what = title(name, rate_point)
    path = entry.weights(name, rate_point) if weights == "default" else Path(weights or "")
    if weights == "default" and not path.exists():
        raise LoraCompError(
            f"the package has no weights of {what}: give a file (codec.weights=PATH), such as one that "
            "`lora-comp import` or `lora-comp train` writes"
        )
    state = None if weights is None else read_weights(path, f"codec {what}")[0]
    codec = build(name, quality)
    if state is not None:
        wrong = [key for key, p in codec.named_parameters() if key not in state or state[key].shape != p.shape]
        wrong += [key for key in state if key not in codec.state_dict()]
        if wrong:
            raise LoraCompError(f"{path} does not hold the weights of {name}: {wrong[0]} is missing or does not match")
        codec.load_state_dict(state, strict=False)
    codec.eval().requires_grad_(False)
    codec.name, codec.quality, codec.rate_point, codec.hash = name, quality, rate_point, weights_hash(codec)
    return codec


def weights_hash(codec: Any) -> bytes:
    """The first 4 bytes of the SHA-256 of a codec's parameters and its entropy coding tables."""
    digest = hashlib.sha256()
    for name, parameter in sorted(codec.named_parameters()):
        digest.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    for table in codec.coder().tables:
        digest.update(table.tobytes())
    return digest.digest()[:4]
