"""Checkpoint files of other libraries: read as tensors alone, nothing else of them is unpickled."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import safetensors.torch
import torch
from torch import nn

from lora_comp.errors import LoraCompError, first_line


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


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The tensors of a checkpoint file by name."""
    if str(path).endswith(".safetensors"):
        return safetensors.torch.load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def load_checkpoint(model: nn.Module, path: str | os.PathLike) -> None:
    """Load a checkpoint file of the model's own library into it."""
    with fitting(path, type(model).__name__):
        model.load_state_dict(read_checkpoint(path))
