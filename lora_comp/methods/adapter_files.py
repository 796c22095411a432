"""Files of pre-trained adapters, in safetensors, and which one is meant.

Their card has the method, codec and codec_hash, the codec's quality, None for an adapter of all, and what else the
method needs to know of its training. The tensors are by default those of `low_rank.Adapter`; the card then has rank and
alpha, or the scale of the updates, by default alpha / rank. A method with other tensors has a `Make` of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from lora_comp import zoo
from lora_comp.codecs.codec import title
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods.low_rank import ATTENTION, MLP, Adapter, identify, layers
from lora_comp.weights import read_weights


def low_rank(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], codec: Any) -> Adapter:
    """The `Make` of low-rank adapters."""
    if "scale" not in card and not {"rank", "alpha"} <= set(card):
        raise LoraCompError(f"{path} is not an adapter that lora-comp train wrote")
    _check_tensors(path, tensors, codec)
    scale = card["scale"] if "scale" in card else card["alpha"] / card["rank"]
    return Adapter(tensors, scale, identify(tensors), card)


# Called with a path, the tensors and the card of its file, and the codec that it is for. Returns an object with an
# `identity`, or raises LoraCompError for tensors that do not match the codec.
Make: TypeAlias = Callable[[Path, Mapping[str, Tensor], Mapping[str, Any], Any], Any]


def read_adapter(path: Path, codec: Any, methods: Sequence[str], make: Make = low_rank) -> Any:
    """Read a pre-trained adapter; None if it was trained for another codec.

    methods: whose adapters are wanted.
    Raises:
        LoraCompError: another file, or the adapter of another method.
    """
    tensors, card = read_weights(path, "the adapter")
    if "codec_hash" not in card:
        raise LoraCompError(f"{path} is not an adapter that lora-comp train wrote")
    if (method := card.get("method", "svd_lora")) not in methods:
        raise LoraCompError(f"{path} is an adapter of the method {method}, not of {' or '.join(methods)}")
    if (card.get("codec"), card.get("codec_hash")) != (codec.name, codec.hash.hex()):
        return None
    if card.get("quality") not in (None, codec.quality):
        return None
    return make(path, tensors, card, codec)


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


def load_adapter(path: Path, codec: Any, methods: Sequence[str], make: Make = low_rank) -> Any:
    """Read a pre-trained adapter. Raises LoraCompError as `read_adapter`, and if it was trained for another codec."""
    adapter = read_adapter(path, codec, methods, make)
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


def choose(codec: Any, methods: Sequence[str], adapter: str, task: str | None, make: Make = low_rank) -> Any:
    """The adapter that a setting names; None for "auto" where none ships.

    Args:
        adapter: "auto" for that of the first task that has one in the package; a file; or the key of another task.
        task: key of the task, such as "cls-scenes", or of several, such as "cls-scenes+det-scenes".
    Raises:
        LoraCompError: as `load_adapter`; neither a file nor a task whose adapter ships.
    """
    known = shipped(codec, methods)
    if adapter == "auto":
        paths = [path for part in (task or "").split("+") for path, key in known.items() if key == part]
        return next((found for path in paths if (found := read_adapter(path, codec, methods, make))), None)
    ours = [path for path, key in known.items() if key == adapter]
    if not ours and not Path(adapter).is_file():
        raise LoraCompError(
            "adapter must be auto, null, a file or a task whose adapter ships for "
            f"{title(codec.name, codec.rate_point)} ({', '.join(sorted(set(known.values()))) or 'none'}); there is no "
            f"file {adapter}"
        )
    return load_adapter(ours[0] if ours else Path(adapter), codec, methods, make)


def of_identity(
    codec: Any,
    identity: bytes,
    methods: Sequence[str],
    path: str | Path | None = None,
    form: Callable[[Adapter], Adapter] = lambda adapter: adapter,
    make: Make = low_rank,
) -> Any:
    """The adapter that a file names by its identity, from `path` or the package.

    form: applied to an adapter before its identity is compared.
    Raises:
        BitstreamError: it is not available.
        LoraCompError: as `load_adapter`, of `path`.
    """
    if path:
        given = form(load_adapter(Path(path), codec, methods, make))
        if given.identity != identity:
            raise BitstreamError(
                f"the file was encoded with the adapter {identity.hex()}, and {path} is {given.identity.hex()}"
            )
        return given
    for file in shipped(codec, methods):
        adapter = read_adapter(file, codec, methods, make)
        if adapter is not None and (adapter := form(adapter)).identity == identity:
            return adapter
    raise BitstreamError(
        f"the file needs the adapter {identity.hex()} for {codec.name} quality {codec.quality:g}, which "
        "is not available: give its file as adapter=PATH"
    )
