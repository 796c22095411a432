"""ONNX files, converted to torch by onnx2torch."""

import os
import re

from lora_comp.errors import LoraCompError, first_line
from lora_comp.networks.external import Source, check_file
from lora_comp.networks.input import Input
from lora_comp.networks.taps import Graph


def read(name: str, weights: str | os.PathLike | None) -> Source:
    path = check_file(name, weights)
    try:
        import onnx
        import onnx2torch
    except ImportError:
        raise LoraCompError("reading an ONNX file needs onnx2torch: pip install 'lora_comp[onnx]'") from None
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own, and those of files beside it that hold its weights
        raise LoraCompError(f"{path} is not an ONNX file: {first_line(error)}") from None
    if not model.graph.node:
        raise LoraCompError(f"{path} is not an ONNX file: it has no operators")
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    sides = [side.dim_value for side in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []  # 0: any
    if len(sides) != 4 or not {sides[1], sides[3]} & {0, 3}:
        shown = ", ".join(f"{v.name} {[d.dim_value or '?' for d in v.type.tensor_type.shape.dim]}" for v in inputs)
        raise LoraCompError(f"{path} does not take one image of three channels, but {shown or 'nothing'}")
    channels_last = sides[3] == 3 and sides[1] != 3
    height, width = sides[1:3] if channels_last else sides[2:]
    try:
        module = onnx2torch.convert(model)
    except Exception as error:
        named = re.search(r"operation_type='(\w+)', version=(\d+)", str(error))
        what = f"its operator {named[1]} (version {named[2]}) is unknown to it" if named else first_line(error)
        raise LoraCompError(f"{path} cannot be converted by onnx2torch: {what}") from None
    own = Input(size=(height, width) if height and width else None)
    return Source(Graph(module), own, channels_last, one_image=sides[0] == 1)
