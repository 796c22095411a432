"""Pickled files, without running what is in them: tensors and plain values are read, an object of any other class
becomes an `Unknown` that only keeps its state."""

import collections
import pickle
import types
from typing import Any

import torch
from torch import Tensor

_DTYPES = {str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}
_ALLOWED = {
    "collections": {"OrderedDict", "defaultdict"},
    "torch": {"Size", "device"} | _DTYPES,
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state"},
    "torch.serialization": {"_get_layout"},
}


class Unknown:
    """An object of a class that is not read."""

    state: Any = None

    def __init__(self, *args: Any, **options: Any):
        pass

    def __new__(cls, *args: Any, **options: Any):
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **options: Any) -> "Unknown":
        return Unknown()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        return type(name, (Unknown,), {})


_PICKLE = types.ModuleType("restricted_pickle")  # as torch.load wants it
vars(_PICKLE).update(Unpickler=_Unpickler, load=lambda file, **options: _Unpickler(file, **options).load())


def load(path) -> Any:
    """What torch.save or pickle wrote; raises whatever these do on a file that is something else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)


def state_of(found: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors by name of a state dict, or of a module that was pickled as a whole."""
    if isinstance(found, collections.abc.Mapping):
        return {str(key): value.detach() for key, value in found.items() if isinstance(value, Tensor)}
    state = found.state if isinstance(found, Unknown) and isinstance(found.state, dict) else {}
    own = {**state.get("_parameters", {}), **state.get("_buffers", {})}
    tensors = {prefix + key: value.detach() for key, value in own.items() if isinstance(value, Tensor)}
    for name, module in state.get("_modules", {}).items():
        tensors |= state_of(module, f"{prefix}{name}.")
    return tensors
