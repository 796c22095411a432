"""Files of torch.export, as torch.export.save writes them."""

import os

import torch

from lora_comp.errors import LoraCompError, first_line
from lora_comp.networks.external import Source, check_file
from lora_comp.networks.input import Input
from lora_comp.networks.taps import Graph


def read(name: str, weights: str | os.PathLike | None) -> Source:
    path = check_file(name, weights)
    try:
        program = torch.export.load(path)
    except Exception as error:  # zip, pickle and schema readers raise nearly anything on a file that is something else
        raise LoraCompError(f"{path} is not a torch.export file: {first_line(error)}") from None
    module = program.module()
    inputs = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(inputs) != 1 or len(inputs[0]) != 4 or inputs[0][1] != 3:
        raise LoraCompError(f"{path} does not take one image (B, 3, H, W), but {[list(shape) for shape in inputs]}")
    batch, _, height, width = inputs[0]
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return Source(Graph(module), Input(size=size), one_image=batch == 1 and isinstance(batch, int))
