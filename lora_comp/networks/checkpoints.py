"""Checkpoint files of other libraries: read as tensors alone, whatever wraps them, and fitted to a network."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from lora_comp.errors import LoraCompError, first_line
from lora_comp.networks import pickles

# Where training code keeps the weights; averaged ones first, as timm's own loader has it.
_HOLDERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "params_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
)
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch.compile's and others' parts
_COUNTERS = ("total_ops", "total_params")  # left by tools that count operations
SHOWN = 2  # keys of each kind in a message


def no_weights(name: str, error: Exception) -> LoraCompError:
    """The error to raise where a library cannot provide the weights that it publishes."""
    return LoraCompError(
        f"the weights of {name} cannot be loaded ({first_line(error)}); give a file as weights, or null for seeded "
        "random ones"
    )


@contextmanager
def fitting(weights: str | os.PathLike, architecture: str) -> Iterator[None]:
    """Turn whatever goes wrong while a checkpoint file is loaded into an architecture into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise LoraCompError(f"weights {weights} do not exist") from error
    except Exception as error:  # pickle and zip readers raise nearly anything on a file that is something else
        raise LoraCompError(f"weights {weights} do not fit {architecture}: {first_line(error)}") from error


def read_checkpoint(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name: a state dict, also within a dict as training code writes, or those of a
    module that was pickled as a whole."""
    with Path(path).open("rb") as file:
        start = file.read(9)
    saved = safetensors.torch.load_file(path) if start[8:] == b"{" else pickles.load(path)
    while isinstance(saved, Mapping):
        inside = {key: value for key, value in saved.items() if _has_tensors(value)}
        if not inside:
            break
        saved = next((inside[key] for key in _HOLDERS if key in inside), next(iter(inside.values())))
    tensors = pickles.state_of(saved)
    if not tensors:
        raise ValueError("it holds no tensors by name")
    return {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): tensor
        for name, tensor in tensors.items()
        if not name.endswith(_COUNTERS)
    }


def _has_tensors(value: object) -> bool:
    """Whether it is a module, or a dict with tensors at any depth."""
    if isinstance(value, Mapping) and any(_has_tensors(inside) for inside in value.values()):
        return True
    return bool(pickles.state_of(value))


def fitted(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names of a network: without the prefix under which most of them are found,
    such as "module." or "model.", and with what else ends in a name that is lacking."""
    prefixes = Counter({"": sum(name in state for name in expected)})
    for key in state:
        for count in range(1, 1 + key.count(".")):
            prefix, name = ".".join(key.split(".")[:count]) + ".", ".".join(key.split(".")[count:])
            prefixes[prefix] += name in expected
    ((prefix, _),) = prefixes.most_common(1)
    found = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    for name in expected.keys() - found.keys():
        alike = [key for key in state if key.endswith(f".{name}")]
        if len(alike) == 1:
            found[name] = state[alike[0]]
    return found


def _misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What keeps a state dict from fitting, with the first names of each kind; "" if it fits."""
    optional = "num_batches_tracked"
    other = [n for n in expected if n in state and state[n].shape != expected[n].shape]
    kinds = {
        "missing": [name for name in expected if name not in state and not name.endswith(optional)],
        "unexpected": [name for name in state if name not in expected and not name.endswith(optional)],
        "of another shape": [f"{n} {tuple(state[n].shape)} instead of {tuple(expected[n].shape)}" for n in other],
    }
    told = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in kinds.items()
        if names
    ]
    return "tensors: " + ", ".join(told) if told else ""


def classes_of(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], classes: int) -> int:
    """The number of classes of a state dict for a network of `classes`: another one where its tensors differ in nothing
    but their length, a multiple of that number."""
    counts = {
        len(state[name]) / (len(tensor) // classes)
        for name, tensor in expected.items()
        if name in state
        and state[name].shape != tensor.shape
        and state[name].shape[1:] == tensor.shape[1:]
        and len(tensor) % classes == 0
    }
    count = counts.pop() if len(counts) == 1 else classes
    return int(count) if count == int(count) else classes


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike,
    with_classes: Callable[[int], nn.Module] | None = None,
    convert: Callable[[dict, nn.Module], dict] | None = None,
    classes: int = 1000,
) -> nn.Module:
    """The model with the weights of a checkpoint file.

    with_classes: makes the model for another number of classes than `classes`, where the checkpoint has one. convert:
    the library's own conversion of the files that an architecture's authors published.
    """
    with fitting(path, type(model).__name__):
        saved = read_checkpoint(path)
        state = fitted(saved, model.state_dict())
        if convert and not model.state_dict().keys() <= state.keys():
            state = fitted(convert(dict(saved), model), model.state_dict())
        if with_classes and (count := classes_of(state, model.state_dict(), classes)) != classes:
            model = with_classes(count)
        if reason := _misfit(state, model.state_dict()):
            raise ValueError(reason)
        model.load_state_dict(state, strict=False)
    return model
