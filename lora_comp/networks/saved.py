"""The file of a network that was trained here: safetensors, with what builds the network as JSON in its metadata."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lora_comp.errors import LoraCompError

Network = TypeVar("Network", bound=nn.Module)


class Saveable(Protocol):
    """A network that can be saved. kind: the key of its metadata, by which its class recognises its files."""

    kind: str

    def core(self) -> dict:
        """What is needed to build the network, besides its weights: plain enough for JSON."""

    def state_dict(self) -> dict[str, Tensor]: ...


def save_network(network: Saveable, path: str | os.PathLike, **facts) -> None:
    """Write the weights of a network (convolutions in float16) with its `core()` to PATH, and these together with
    `facts` (training data, duration, scores) to PATH with the suffix .json."""
    weights = {
        key: value.to(torch.float16 if value.ndim > 1 else value.dtype).contiguous()
        for key, value in network.state_dict().items()
    }
    core = network.core()
    Path(path).write_bytes(safetensors.torch.save(weights, {network.kind: json.dumps(core)}))
    Path(path).with_suffix(".json").write_text(json.dumps(core | facts, indent=1) + "\n")


def read_saved(path: Path, build: Callable[[dict], Network], kind: str, what: str = "network") -> Network:
    """The network that `save_network` wrote. build: makes a network of that kind from its core. what: its name in
    messages."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            core = json.loads((file.metadata() or {})[kind])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        network = build(core)
        network.load_state_dict(weights)  # copies into float32
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LoraCompError(
            f"{path} is not a {what} saved by lora_comp; for another architecture's weights give its "
            "name as the network (timm/NAME or torchvision/NAME) and the file as weights"
        ) from error
    return network
