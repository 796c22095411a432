"""ONNX files, converted to torch by onnx2torch and operators of our own (`onnx_convert`)."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx

from lora_comp.errors import LoraCompError, first_line
from lora_comp.networks.external import Source, check_file
from lora_comp.networks.input import Input
from lora_comp.networks.taps import Graph

LUMA = (0.299, 0.587, 0.114)  # of RGB, as Pillow makes grey images
LFS = b"version https://git-lfs"  # the beginning of a pointer that stands in for a file
# What white and black are in a type of the input: the range and what is subtracted.
RANGES = {"UINT8": (255, 0), "INT8": (255, 128), "UINT16": (65535, 0), "INT32": (255, 0), "INT64": (255, 0)}
REALS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")


def read(name: str, weights: str | os.PathLike | None) -> Source:
    path = check_file(name, weights)
    try:
        import onnx2torch  # noqa: F401
        import onnxscript  # noqa: F401

        from lora_comp.networks.onnx_convert import Refused, convert
    except ImportError:
        raise LoraCompError(
            "reading an ONNX file needs onnx2torch and onnxscript: pip install 'lora_comp[onnx]'"
        ) from None
    model = _load(path)
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    layout, channels, sides = _form(inputs[0], model.graph) if len(inputs) == 1 else ("", 0, [])
    if not layout:
        shown = ", ".join(f"{v.name} {[d.dim_value or '?' for d in v.type.tensor_type.shape.dim]}" for v in inputs)
        raise LoraCompError(f"{path} does not take one image of three channels or one, but {shown or 'nothing'}")
    own = _own_input(path, inputs[0].type.tensor_type.elem_type)
    height, width = sides[layout.index("H")], sides[layout.index("W")]
    own = replace(own, size=(height, width) if height and width else None)
    try:
        module = convert(model)
    except Refused as error:
        raise LoraCompError(f"{path} cannot be converted: {error}") from None
    if (layout, channels) != ("NCHW", 3):
        _arrange(module, layout, channels)
    return Source(Graph(module), own, one_image="N" not in layout or sides[0] == 1)


def _load(path: Path):
    """The file's model, with weights that lie in files beside it."""
    import onnx

    with open(path, "rb") as file:
        start = file.read(len(LFS))
    if start == LFS:
        raise LoraCompError(f"{path} is a pointer of Git LFS, not the file itself: fetch it with git lfs pull")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own
        raise LoraCompError(f"{path} is not an ONNX file, or not a whole one: {first_line(error)}") from None
    if not model.graph.node:
        raise LoraCompError(f"{path} is not an ONNX file: it has no operators")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # of files that are missing, too short, or elsewhere
        raise LoraCompError(f"{path} has weights in another file, which cannot be read: {first_line(error)}") from None
    return model


def _own_input(path: Path, kind: int) -> Input:
    """Range and mean that the declared type of the input asks for."""
    import onnx

    declared = onnx.TensorProto.DataType.Name(kind)
    if declared not in REALS and declared not in RANGES:
        raise LoraCompError(f"{path} takes an image of type {declared}; known are {', '.join((*REALS, *RANGES))}")
    white, black = RANGES.get(declared, (1, 0))
    return Input(range=float(white), mean=(float(black),) * 3)


def _form(value, graph) -> tuple[str, int, list[int]]:
    """Of the input: what its axes are, as "NCHW" or "HWC", its number of channels and the length of each axis, 0 where
    any fits; "" if it is not an image. 1 is an axis of length 1 beside batch and channels."""
    kind = value.type.tensor_type
    sides = [side.dim_value for side in kind.shape.dim] or [0] * 4  # without any: of any
    if len(sides) == 5:  # of frames or depth; one fits
        ones = [axis for axis in range(1, 5) if sides[axis] == 1]
        rest = {axis: _layout(sides[:axis] + sides[axis + 1 :], value.name, graph) for axis in ones}
        fits = [(axis, found) for axis, found in rest.items() if found[1] == 3] or [
            (axis, found) for axis, found in rest.items() if found[0]
        ]
        if not fits:
            return "", 0, sides
        axis, (layout, channels) = fits[0]
        return layout[:axis] + "1" + layout[axis:], channels, sides
    if len(sides) == 3:
        layout, channels = _layout([1, *sides], value.name, graph)
        return layout[1:], channels, sides
    return (*_layout(sides, value.name, graph), sides) if len(sides) == 4 else ("", 0, sides)


def _layout(sides: Sequence[int], name: str, graph) -> tuple[str, int]:
    """Three channels first, or last, or one; where the file leaves that open, as its first operators take the image."""
    for channels in (3, 1):
        if sides[1] == channels:
            return "NCHW", channels
        if sides[3] == channels:
            return "NHWC", channels
    if sides[1] and sides[3]:
        return "", 0
    return _taken(name, graph)


def _taken(name: str, graph) -> tuple[str, int]:
    """The layout of an input whose shape says nothing: by the first convolution or transposition."""
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    for node in graph.node:
        if name not in node.input:
            continue
        if node.op_type == "Transpose":
            turned = next((list(one.ints) for one in node.attribute if one.name == "perm"), [])
            return ("NHWC" if turned == [0, 3, 1, 2] else "NCHW"), 3
        if node.op_type == "Conv":
            return "NCHW", 1 if node.input[1] in weights and weights[node.input[1]][1] == 1 else 3
        name = node.output[0]
    return "NCHW", 3


def _arrange(module: fx.GraphModule, layout: str, channels: int) -> None:
    """Let a graph take images (B, 3, H, W), and its operators what they were made for."""
    image = next(node for node in module.graph.nodes if node.op == "placeholder")
    with module.graph.inserting_after(image):
        arranged = module.graph.call_function(arrange, (image, layout, channels))
    image.replace_all_uses_with(arranged, lambda user: user is not arranged)
    module.recompile()


def arrange(image: Tensor, layout: str, channels: int) -> Tensor:
    """(B, 3, H, W) in another layout, of one image where the layout has no N, and as grey where it has one channel."""
    if channels == 1:
        image = (image * torch.tensor(LUMA).to(image).view(1, 3, 1, 1)).sum(1, keepdim=True)
    axes = [axis for axis in layout if axis != "1"]
    if "N" not in layout:
        image = image[0]
    image = image.permute(["NCHW"[-image.ndim :].index(axis) for axis in axes])
    return image.unsqueeze(layout.index("1")) if "1" in layout else image
