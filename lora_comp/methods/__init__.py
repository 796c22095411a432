"""Ways to adapt a codec to a picture and a task: what is trained, what travels, how a decoder puts it back.

A method has `name`, `adapter` (with the `identity` that files carry), `prepare(codec)` for the encoder and
`restore(codec, payload)` for the decoder. The method "none" is the plain codec: None in place of an object.
"""
from pathlib import Path

from torch import nn

from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods.svd_lora import Adapter, LowRank, from_identity, identify, seeded
from lora_comp.zoo import ROOT, adapter_path, read_weights

METHODS = ("none", "svd_lora", "lora")


def load_method(
    name: str, codec: nn.Module, task: str | None = None, adapter: str | Path | None = "auto", rank: int = 4,
    alpha: int = 8, mlp: bool = False, seed: int = 0, exponent: int = 8,
) -> LowRank | None:
    """A method by name, with its adapter for this codec.

    Args:
        task: full name of the task, as "cls-scenes": with adapter "auto", the adapter pre-trained for it is used
            where one ships, else one made from the seed with this rank, alpha and choice of layers.
        adapter: "auto", a path to a pre-trained one, or None for one made from the seed.
        exponent: the decoder's changes are multiples of 2^-exponent.
    """
    if name not in METHODS:
        raise LoraCompError(f"there is no method {name!r}; known are {', '.join(METHODS)}")
    if name == "none":
        return None
    if adapter == "auto":
        shipped = adapter_path(codec.name, codec.quality, name, task or "")
        adapter = shipped if shipped.exists() else None
    found = seeded(codec, name, rank, alpha, mlp, seed) if adapter is None else load_adapter(Path(adapter), codec)
    return LowRank(name, found, exponent)


def load_adapter(path: Path, codec: nn.Module) -> Adapter:
    """A pre-trained adapter. Raises LoraCompError where it was made for another codec."""
    tensors, card = read_weights(path, "the adapter")
    if (card.get("codec"), card.get("quality"), card.get("codec_hash")) != (
            codec.name, codec.quality, codec.hash.hex()):
        raise LoraCompError(f"{path} was trained for {card.get('codec')} quality {card.get('quality')} with other "
                            f"weights than {codec.name} quality {codec.quality} has here")
    return Adapter(tensors, card["rank"], card["alpha"], identify(tensors))


def method_of_file(name: str, identity: bytes, codec: nn.Module, adapter: str | Path | None = None) -> LowRank:
    """The method that a file names: its adapter is made from the seed, read from `adapter`, or one that ships.

    Raises:
        BitstreamError: the adapter is not at hand.
    """
    if name not in METHODS:
        raise BitstreamError(f"the file was made with the method {name!r}, which this version cannot decode")
    made = from_identity(codec, name, identity)
    if made is not None:
        return LowRank(name, made)
    paths = [Path(adapter)] if adapter else sorted((ROOT / "adapters").glob(f"{codec.name}-q{codec.quality}-{name}-*"))
    for path in paths:
        found = load_adapter(path, codec)
        if found.identity == identity:
            return LowRank(name, found)
    raise BitstreamError(f"the file needs the adapter {identity.hex()} for {codec.name} quality {codec.quality}, which "
                         "is not at hand: name the file it was encoded with as adapter=PATH")
