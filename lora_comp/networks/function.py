"""MODULE:FUNCTION, a function of the user's own that returns a network. It is run, and so is its module."""

import importlib
import os
import sys

from torch import nn

from lora_comp.errors import LoraCompError, first_line
from lora_comp.networks.external import Source
from lora_comp.networks.taps import Modules
from lora_comp.networks.timm import stages


def read(name: str, weights: str | os.PathLike | None) -> Source:
    """The module is imported with the current folder on the path, and the function called without arguments."""
    if weights != "default":
        raise LoraCompError(f"{name} makes its own weights: leave out weights={weights}")
    module, _, function = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        made = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever the user's own code raises
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise LoraCompError(f"{name} cannot be called: {reason}") from error
    made = getattr(made, "_orig_mod", made)  # of torch.compile, in whose code hooks are not called
    if not isinstance(made, nn.Module):
        raise LoraCompError(f"{name}() returns a {type(made).__name__}, not a torch.nn.Module")
    return Source(Modules(made), stages=stages(made) if hasattr(made, "pretrained_cfg") else ())  # timm's have it
