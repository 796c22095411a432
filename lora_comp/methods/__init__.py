"""Ways to adapt a codec to an image and a task: what is trained, what travels, how a decoder puts it back.

A method has `name`, `adapter` (with the `identity` that files carry), `prepare(codec)` for the encoder and
`restore(codec, payload)` for the decoder. The method "none" is the plain codec: None in place of an object.
"""

from pathlib import Path
from typing import Any

from lora_comp.codecs import Codec
from lora_comp.entropy.deltas import EXPONENTS
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods.config import LowRankConfig
from lora_comp.methods.svd_lora import Adapter, LowRank, from_identity, identify, seeded
from lora_comp.settings import Named
from lora_comp.weights import read_weights
from lora_comp.zoo import ROOT, adapter_path

METHODS = ("none", "svd_lora", "lora")
STARTS = {"svd_lora": ("svd_lora",), "lora": ("lora", "svd_lora")}  # the methods whose pre-trained adapters one takes


def choices() -> dict[str, Any]:
    """The settings of each method, with their defaults."""
    return {
        "none": Named("none"),
        "svd_lora": LowRankConfig("svd_lora"),
        "lora": LowRankConfig("lora", exponent=8),
    }


def load_method(
    name: str,
    codec: Codec,
    task: str | None = None,
    adapter: str | Path | None = "auto",
    rank: int = 4,
    alpha: int = 8,
    mlp: bool = False,
    seed: int = 0,
    exponent: int = 5,
) -> LowRank | None:
    """A method by name, with its adapter for this codec.

    Args:
        task: key of the task, as "cls-scenes", or of several, as "cls-scenes+det-scenes": with adapter "auto", the
            one pre-trained for the first that has one is used, else one made from the seed with this rank, alpha and
            choice of layers.
        adapter: "auto", a path to a pre-trained one, the key of another task whose shipped one to start from, or None
            for one made from the seed. Plain LoRA starts from SVD-LoRA's too, with S folded into U.
        exponent: the decoder's changes are fitted in steps of 2^-exponent; `ttft.refine` may take half or twice that.
    """
    if name not in METHODS:
        raise LoraCompError(f"there is no method {name!r}; known are {', '.join(METHODS)}")
    if name == "none":
        return None
    if exponent not in EXPONENTS:
        raise LoraCompError(f"exponent must be {EXPONENTS[0]} to {EXPONENTS[-1]}, not {exponent}")
    found = None
    if adapter == "auto":
        paths = [
            adapter_path(codec.name, codec.quality, kind, part)
            for part in (task or "").split("+")
            for kind in STARTS[name]
        ]
        found = next((read_adapter(path, codec, name) for path in paths if path.exists()), None)
    elif adapter is not None:
        shipped = [adapter_path(codec.name, codec.quality, kind, str(adapter)) for kind in STARTS[name]]
        found = load_adapter(next((path for path in shipped if path.exists()), Path(adapter)), codec, name)
    return LowRank(name, found or seeded(codec, name, rank, alpha, mlp, seed), exponent)


def read_adapter(path: Path, codec: Codec, method: str) -> Adapter | None:
    """A pre-trained adapter as the method has it, or None where it was made for another codec."""
    tensors, card = read_weights(path, "the adapter")
    made_for = card.get("codec"), card.get("quality"), card.get("codec_hash")
    if made_for != (codec.name, codec.quality, codec.hash.hex()):
        return None
    found = Adapter(tensors, card["rank"], card["alpha"], identify(tensors))
    return found.folded() if method == "lora" else found


def load_adapter(path: Path, codec: Codec, method: str) -> Adapter:
    """The same. Raises LoraCompError where it was made for another codec."""
    found = read_adapter(path, codec, method)
    if found is None:
        raise LoraCompError(f"{path} was trained for other weights than {codec.name} quality {codec.quality} has here")
    return found


def method_of_file(name: str, identity: bytes, codec: Codec, adapter: str | Path | None = None) -> LowRank:
    """The method that a file names: its adapter is made from the seed, read from `adapter`, or one that ships.

    Raises:
        BitstreamError: the adapter is not at hand.
    """
    if name not in METHODS[1:]:
        raise BitstreamError(f"the file was made with the method {name!r}, which this version cannot decode")
    try:
        made = from_identity(codec, name, identity)
    except LoraCompError as error:
        raise BitstreamError(f"the file names an adapter that cannot be: {error}") from None
    if made is not None:
        return LowRank(name, made)
    shipped = [
        path
        for kind in STARTS[name]
        for path in sorted((ROOT / "adapters").glob(f"{codec.name}-q{codec.quality}-{kind}-*.safetensors"))
    ]
    candidates = (
        [load_adapter(Path(adapter), codec, name)] if adapter else [read_adapter(path, codec, name) for path in shipped]
    )
    for found in candidates:
        if found is not None and found.identity == identity:
            return LowRank(name, found)
    raise BitstreamError(
        f"the file needs the adapter {identity.hex()} for {codec.name} quality {codec.quality}, which "
        "is not at hand: name the file it was encoded with as adapter=PATH"
    )
