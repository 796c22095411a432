"""Tensors in and out of safetensors files: float16 on disk unless said otherwise, float32 in use.

A file carries a card in its metadata: a JSON object that says how the tensors were made and what they reach.
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
    """The tensors of a file, as float32, and its metadata. Raises LoraCompError where there are none."""
    if not path.exists():
        raise LoraCompError(f"there are no weights for {what}: {path} is missing")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in list(file.keys())}
            return tensors, json.loads((file.metadata() or {}).get("card", "{}"))
    except SafetensorError as error:
        raise LoraCompError(f"{path} is not a safetensors file of weights: {error}") from None


def write_weights(path: Path, tensors: Mapping[str, Tensor], card: dict, dtype: torch.dtype = torch.float16) -> None:
    """Write tensors with a card: how they were made and what they reach."""
    make_folder(path.parent)
    stored = {name: t.detach().to("cpu", dtype).contiguous() for name, t in tensors.items()}
    write_file(path, save(stored, {"card": json.dumps(card)}))
