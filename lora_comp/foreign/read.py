"""A network that somebody else wrote, from its file or its name."""

import importlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lora_comp.errors import LoraCompError
from lora_comp.foreign.image import Input
from lora_comp.foreign.taps import Graph, Modules, Script
from lora_comp.networks import library_model, load_network

SCRIPTS, EXPORTED = (".pt", ".ts", ".pth", ".torchscript", ".jit"), (".pt2",)
KINDS = (
    "an ONNX (.onnx), TorchScript (.pt, .ts) or torch.export (.pt2) file, timm/NAME, torchvision/NAME, "
    "module:function, or a network that ships here"
)


@dataclass
class Found:
    """A network as it was read. own: the input it says it wants. channels_last: it takes (B, H, W, 3).
    alone: it takes one image at a time."""

    taps: Modules | Graph | Script
    own: Input
    channels_last: bool = False
    alone: bool = False


def read_network(name: str | os.PathLike, weights: str | os.PathLike | None) -> Found:
    """See `foreign.load`."""
    text, path = str(name), Path(name)
    suffix = path.suffix.lower()
    if suffix in (".onnx", *SCRIPTS, *EXPORTED):
        if not path.is_file():
            raise LoraCompError(f"there is no file {path}")
        if weights != "default":
            raise LoraCompError(f"{path} holds its weights: weights={weights} does not go with it")
        return (_read_onnx if suffix == ".onnx" else _read_export if suffix in EXPORTED else _read_script)(path)
    if text.startswith(("timm/", "torchvision/")):
        model, mean, std, size = library_model(text, weights, every_kind=True)
        return Found(Modules(model), Input(size=size, mean=mean, std=std))
    if re.fullmatch(r"[\w.]+:\w+", text):
        if weights != "default":
            raise LoraCompError(f"{text} makes its own weights: weights={weights} does not go with it")
        return Found(Modules(_call(*text.split(":"))), Input())
    try:
        return Found(Modules(load_network(name, weights)), Input())
    except LoraCompError as error:
        if "unknown network" not in str(error):
            raise
    raise LoraCompError(f"unknown network {text!r}: give {KINDS}")


def first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read_onnx(path: Path) -> Found:
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
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    sides = [side.dim_value for side in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []  # 0: any
    if len(sides) != 4 or not {sides[1], sides[3]} & {0, 3}:
        told = ", ".join(f"{v.name} {[d.dim_value or '?' for d in v.type.tensor_type.shape.dim]}" for v in inputs)
        raise LoraCompError(f"{path} does not take one image of three channels, but {told or 'nothing'}")
    last = sides[3] == 3 and sides[1] != 3
    height, width = sides[1:3] if last else sides[2:]
    try:
        module = onnx2torch.convert(model)
    except Exception as error:
        named = re.search(r"operation_type='(\w+)', version=(\d+)", str(error))
        what = f"its operator {named[1]} (version {named[2]}) is unknown to it" if named else first_line(error)
        raise LoraCompError(f"{path} cannot be converted by onnx2torch: {what}") from None
    own = Input(size=(height, width) if height and width else None)
    return Found(Graph(module), own, last, alone=sides[0] == 1)


def _read_script(path: Path) -> Found:
    try:
        return Found(Script(torch.jit.load(path, map_location="cpu")), Input())
    except RuntimeError as error:
        if "constants.pkl" in str(error) or "PytorchStreamReader" in str(error):
            raise LoraCompError(
                f"{path} is not a TorchScript file: torch.jit.save writes one. Of a checkpoint, which holds weights "
                "alone, give the network that it is for, as module:function"
            ) from None
        raise LoraCompError(f"{path} cannot be used: {first_line(error)}") from None


def _read_export(path: Path) -> Found:
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
    return Found(Graph(module), Input(size=size), alone=batch == 1 and isinstance(batch, int))


def _call(module: str, function: str) -> nn.Module:
    """What the user's own function returns. It is run, and so is its module, with the current folder on the path."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        made = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever the user's own code raises
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise LoraCompError(f"{module}:{function} cannot be called: {reason}") from error
    if not isinstance(made, nn.Module):
        raise LoraCompError(f"{module}:{function}() gives a {type(made).__name__}, not a torch.nn.Module")
    return made
