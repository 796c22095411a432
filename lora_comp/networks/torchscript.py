"""TorchScript files, as torch.jit.save writes them. They run their author's code."""

import os

import torch

from lora_comp.errors import LoraCompError, first_line
from lora_comp.networks.external import Source, check_file
from lora_comp.networks.taps import Script, undeprecated


def read(name: str, weights: str | os.PathLike | None) -> Source:
    path = check_file(name, weights)
    try:
        with undeprecated():
            return Source(Script(torch.jit.load(path, map_location="cpu")))
    except RuntimeError as error:
        if "constants.pkl" in str(error) or "PytorchStreamReader" in str(error):
            raise LoraCompError(
                f"{path} is not a TorchScript file, as torch.jit.save writes; if it is a checkpoint, which holds "
                "weights alone, give its network as MODULE:FUNCTION"
            ) from None
        raise LoraCompError(f"{path} cannot be used: {first_line(error)}") from None
