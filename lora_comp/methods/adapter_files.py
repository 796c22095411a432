"""Files of pre-trained adapters: the tensors of `low_rank.Adapter` in safetensors.

Their card has the method, codec and codec_hash; the codec's quality, None for an adapter of all; rank and alpha, or the
scale of the updates, by default alpha / rank; and what else the method needs to know of its training.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_comp import zoo
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods.low_rank import ATTENTION, MLP, Adapter, identify, layers
from lora_comp.weights import read_weights


def read_adapter(path: Path, codec: Any, methods: Sequence[str]) -> Adapter | None:
    """Read a pre-trained adapter; None if it was trained for another codec.

    methods: whose adapters are wanted.
    Raises:
        LoraCompError: another file, or the adapter of another method.
    """
    tensors, card = read_weights(path, "the adapter")
    if "scale" not in card and not {"rank", "alpha"} <= set(card):
        raise LoraCompError(f"{path} is not an adapter that lora-comp train wrote")
    if (method := card.get("method", methods[0])) not in methods:
        raise LoraCompError(f"{path} is an adapter of the method {method}, not of {' or '.join(methods)}")
    if (card.get("codec"), card.get("codec_hash")) != (codec.name, codec.hash.hex()):
        return None
    if card.get("quality") not in (None, codec.quality):
        return None
    _check_tensors(path, tensors, codec)
    scale = card["scale"] if "scale" in card else card["alpha"] / card["rank"]
    return Adapter(tensors, scale, identify(tensors), card)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], codec: Any) -> None:
    """Raise LoraCompError for tensors that are not of layers of the codec, or incomplete."""
    known, gains = layers(codec, ATTENTION + MLP), getattr(codec, "gains", ())
    for key, value in tensors.items():
        name, _, kind = key.rpartition(".")
        shapes: dict[str, tuple[int, ...]] = {}
        if name in known and f"{name}.S" in tensors:
            rank, outputs, inputs = tensors[f"{name}.S"].numel(), known[name].out_features, known[name].in_features
            shapes = {"U": (outputs, rank), "S": (rank,), "V": (inputs, rank)}
        elif name in known:
            shapes = {"weight": known[name].weight.shape, "bias": known[name].bias.shape}
        elif key in gains:
            shapes = {gain: codec.get_parameter(gain).shape for gain in gains}
        if value.shape != shapes.get(kind) or any(key.removesuffix(kind) + other not in tensors for other in shapes):
            raise LoraCompError(f"{path} is not an adapter of {codec.name}: {key} does not match its layers")


def load_adapter(path: Path, codec: Any, methods: Sequence[str]) -> Adapter:
    """Read a pre-trained adapter. Raises LoraCompError as `read_adapter`, and if it was trained for another codec."""
    adapter = read_adapter(path, codec, methods)
    if adapter is None:
        raise LoraCompError(
            f"{path} was trained for other weights than those loaded of {codec.name} quality {codec.quality:g}"
        )
    return adapter


def shipped(codec: Any, methods: Sequence[str]) -> dict[Path, str]:
    """The adapters of methods, in order of preference, in the package for a codec, with the keys of their tasks."""
    found = {}
    for method in methods:
        any_task = zoo.adapter_path(codec.name, codec.rate_point, method, "*")
        for path in sorted(any_task.parent.glob(any_task.name)):
            found[path] = path.stem.removeprefix(any_task.stem[:-1])
    return found


def of_identity(
    codec: Any,
    identity: bytes,
    methods: Sequence[str],
    path: str | Path | None = None,
    form: Callable[[Adapter], Adapter] = lambda adapter: adapter,
) -> Adapter:
    """The adapter that a file names by its identity, from `path` or the package.

    form: applied to an adapter before its identity is compared.
    Raises:
        BitstreamError: it is not available.
        LoraCompError: as `load_adapter`, of `path`.
    """
    if path:
        given = form(load_adapter(Path(path), codec, methods))
        if given.identity != identity:
            raise BitstreamError(
                f"the file was encoded with the adapter {identity.hex()}, and {path} is {given.identity.hex()}"
            )
        return given
    for file in shipped(codec, methods):
        adapter = read_adapter(file, codec, methods)
        if adapter is not None and (adapter := form(adapter)).identity == identity:
            return adapter
    raise BitstreamError(
        f"the file needs the adapter {identity.hex()} for {codec.name} quality {codec.quality:g}, which "
        "is not available: give its file as adapter=PATH"
    )
