"""ONNX graphs made fit for onnx2torch, and converted by it.

onnx2torch wires the graph and knows the plain operators. Those that it lacks, knows only in old versions or only with
constant inputs are ours (`onnx_ops`, `onnx_shapes`, `onnx_layers`, `onnx_resize`), registered with it under their own
names.
"""

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto
from onnx2torch import convert as wire
from onnx2torch.node_converters.registry import add_converter, get_converter
from onnx2torch.onnx_graph import OnnxGraph, ValueType
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.onnx_tensor import OnnxTensor
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    TopologicalSortPass,
)
from onnxscript.optimizer import fold_constants_ir
from torch import Tensor, fx, nn

from lora_comp.errors import first_line
from lora_comp.networks.onnx_layers import LAYERS
from lora_comp.networks.onnx_ops import OPERATORS
from lora_comp.networks.onnx_resize import resize, upsample
from lora_comp.networks.onnx_shapes import SHAPES

OURS: dict[str, Callable] = {**OPERATORS, **SHAPES, **LAYERS, "Resize": resize, "Upsample": upsample}
OWN = "lora_comp."  # before the name of an operator of `OURS`
VERSION = 17  # of ONNX: what changed since in operators that are not ours are their types alone
OLDEST = 6  # until then the others had an attribute more, consumed_inputs, that changes nothing
REALS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
LIMIT = 2**31  # numbers in a tensor: all that is constant is folded
BEFORE = (RemoveInitializersFromInputsPass(), InlinePass(), TopologicalSortPass())
AFTER = (RemoveUnusedNodesPass(), LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0), NameFixPass())
ONNX = ("", "ai.onnx")  # the domain of its own operators
SEVERAL = ("Split", "TopK")  # operators of ours that return several tensors
BRANCHES = ("If", "Loop", "Scan")
INTEGERS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")


class Refused(Exception):
    """A graph that cannot be converted: its first node that cannot, and why."""


class Function(nn.Module):
    """An operator of ours as a module. name: its node's. given: which of its inputs it has. only: return the first of
    several tensors."""

    def __init__(self, name: str, operator: str, given: list[bool], attributes: dict[str, Any], only: bool):
        super().__init__()
        self.name, self.operator, self.given, self.attributes, self.only = name, operator, given, attributes, only

    def forward(self, *inputs: Tensor) -> Any:
        each = iter(inputs)
        try:
            result = OURS[self.operator](*(next(each) if given else None for given in self.given), **self.attributes)
        except Exception as error:  # of a shape that does not fit, or of a case that is not written
            raise RuntimeError(f"operator {self.operator}, node {self.name}: {first_line(error)}") from error
        return result[0] if self.only else result


def _make(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    operator = node.operation_type.removeprefix(OWN)
    attributes = {key: _value(value) for key, value in node.attributes.items() if key != "consumed_inputs"}
    given, outputs = [bool(value) for value in node.input_values], node.output_values
    if operator == "Split" and len(given) < 2 and "split" not in attributes:
        attributes["num_outputs"] = len(outputs)
    try:
        inspect.signature(OURS[operator]).bind(*given, **attributes)
    except ValueError:  # a function of torch without a signature, of an operator without attributes
        pass
    except TypeError as error:
        raise NotImplementedError(str(error)) from None
    if len(outputs) > 1 and operator not in SEVERAL:
        raise NotImplementedError(f"its output {outputs[1]} is not computed")
    only = operator in SEVERAL and len(outputs) == 1
    module = Function(node.unique_name, operator, given, attributes, only)
    return OperationConverterResult(module, OnnxMapping(tuple(filter(None, node.input_values)), outputs))


def _value(value: Any) -> Any:
    return value.to_torch() if isinstance(value, OnnxTensor) else value


for _operator in OURS:
    for _version in range(1, VERSION + 1):  # under a name that ONNX does not know, onnx2torch asks for the file's
        add_converter(OWN + _operator, _version)(_make)


def convert(model: ModelProto) -> fx.GraphModule:
    """The graph in torch, in evaluation mode, computing in float32 whatever the file's precision.

    Raises Refused, in one line, with the first node that cannot be converted.
    """
    node = None
    try:
        model = _simplified(_in_float32(model))
        _prepare(model)
        return wire(model).eval()
    except Exception as error:
        with contextlib.suppress(Exception):  # a graph that is wrong as a whole
            node = _refused_node(model)
        raise Refused(node or first_line(error).replace(OWN, "")) from error


def _refused_node(model: ModelProto) -> str | None:
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = OnnxGraph(inferred.graph)
    versions = {opset.domain: opset.version for opset in inferred.opset_import}
    for name, node in graph.nodes.items():
        what = f"its operator {node.operation_type.removeprefix(OWN)} (node {node.name or name})"
        lacking = [value for value in node.input_values if graph.value_type(value) == ValueType.UNKNOWN]
        if lacking:
            return f"{what} reads {lacking[0]}, which the file does not have"
        try:
            converter = get_converter(node.operation_type, versions.get(node.domain, 1), node.domain)
        except NotImplementedError:
            return f"{what} {_why(node.domain, node.operation_type)}"
        try:
            converter(node, graph)
        except Exception as error:
            return f"{what}: {first_line(error)}"
    return None


def _why(domain: str, operator: str) -> str:
    """Why an operator is not converted, and what to do."""
    if operator in BRANCHES:
        return "branches on what it computes: export the network alone, for a fixed size"
    if domain == "com.microsoft":
        return "is onnxruntime's own: take the file as it was before onnxruntime changed it"
    if operator in INTEGERS:
        return "computes with integers and has no gradient: quantise with QuantizeLinear and DequantizeLinear, or not"
    return "is unknown"


# Simpler graphs


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside of its nodes, as of If."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _in_float32(model: ModelProto) -> ModelProto:
    """A copy whose numbers of other floating-point types are float32: on a CPU float16 is slow, and lossy. Nodes
    without a name are called by their operators."""
    twin = ModelProto()
    twin.CopyFrom(model)
    graphs = [*_graphs(twin.graph)]
    nodes = [node for part in (*graphs, *twin.functions) for node in part.node]
    for graph in graphs:
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in REALS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in nodes:
        node.name = node.name or node.op_type
    tensors = [tensor for graph in graphs for tensor in graph.initializer]
    for node in nodes:
        tensors += [attribute.t for attribute in node.attribute if attribute.type == AttributeProto.TENSOR]
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in REALS:
                attribute.i = TensorProto.FLOAT
            if attribute.type == AttributeProto.STRING:  # TensorFlow's hold bytes that are no text
                attribute.s = attribute.s.decode(errors="replace").encode()
    for tensor in tensors:
        if tensor.data_type in REALS:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return twin


def _simplified(model: ModelProto) -> ModelProto:
    """With its functions inlined and its constants folded; the graph as it is if onnxscript fails on it."""
    del model.graph.value_info[:]  # shapes are inferred anew: those in files may be wrong
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        with _quiet("onnxscript", "onnx_ir"):
            graph = onnx_ir.from_proto(model)
            for change in (*BEFORE, _fold, *AFTER):
                change(graph)
            return onnx_ir.to_proto(graph)
    except Exception:
        return model


@contextlib.contextmanager
def _quiet(*libraries: str) -> Iterator[None]:
    """Without warnings of libraries, as of what they do not fold: what matters comes to light in the conversion."""
    logs = [logging.getLogger(name) for name in libraries]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _fold(graph: onnx_ir.Model) -> None:
    fold_constants_ir(
        graph, onnx_shape_inference=True, input_size_limit=LIMIT, output_size_limit=LIMIT, should_fold=lambda node: True
    )


def _prepare(model: ModelProto) -> None:
    """Give every node a name of its own, leave out outputs that nothing reads, which onnx2torch would mistake for
    several, and let our operators be called by their own names."""
    graph = model.graph
    for opset in model.opset_import:
        if opset.domain in ONNX:
            opset.domain, opset.version = "", min(max(opset.version, OLDEST), VERSION)
    read = {name for part in _graphs(graph) for node in part.node for name in node.input}
    read |= {value.name for value in graph.output}
    names = set[str]()
    for node in graph.node:
        node.domain = "" if node.domain in ONNX else node.domain
        if node.op_type != "Split":
            while len(node.output) > 1 and node.output[-1] not in read:
                del node.output[-1]
        name = first = (node.name or node.op_type).replace(".", "/")
        count = 0
        while name in names:
            count += 1
            name = f"{first}_{count}"
        node.name = name
        names.add(name)
        if node.op_type in OURS and not node.domain:
            node.op_type = OWN + node.op_type
    _name_outputs(graph)


def _name_outputs(graph: GraphProto) -> None:
    """Let each output be that of a node with no other: onnx2torch returns all that a node does."""
    single = {node.output[0] for node in graph.node if len(node.output) == 1}
    for place, value in enumerate(graph.output):
        if value.name not in single:
            name = f"output_{place}/{value.name}"
            graph.node.append(onnx.helper.make_node("Identity", [value.name], [name], name=name))
            value.name = name
