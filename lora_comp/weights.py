"""Reading and writing of weights in safetensors files: float16 on disk by default, float32 in memory.

The metadata of a file has a card, a JSON object with how the weights were trained and their results.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lora_comp.errors import LoraCompError
from lora_comp.files import make_folder, write_file


def read_weights(path: Path, what: str) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a file as float32, by name, and its card. Raises LoraCompError if it cannot be read.

    what: name of the weights in error messages.
    """
    if not path.exists():
        raise LoraCompError(f"there are no weights for {what}: {path} is missing")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in list(file.keys())}
            return tensors, json.loads((file.metadata() or {}).get("card", "{}"))
    except SafetensorError as error:
        raise LoraCompError(f"{path} is not a safetensors file of weights: {error}") from None


def write_weights(path: Path, tensors: Mapping[str, Tensor], card: dict, dtype: torch.dtype = torch.float16) -> None:
    """Write tensors with a card. Raises LoraCompError if the file cannot be written."""
    make_folder(path.parent)
    stored = {name: t.detach().to("cpu", dtype).contiguous() for name, t in tensors.items()}
    write_file(path, save(stored, {"card": json.dumps(card)}))
