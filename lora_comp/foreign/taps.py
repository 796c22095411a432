"""Reaching the tensors inside a network that somebody else wrote, by the three forms such a network comes in.

    Modules   any nn.Module: what its parts return, by hooks
    Graph     an fx graph, as onnx2torch and torch.export make them: what its nodes return, by cutting the graph there
    Script    TorchScript: the values of its frozen graph, by cutting that

Each has
    probe(x)       a Probe of one pass
    keep(names)    makes kept(x) return the tensors of these names, in this order
    kept(x)
    answer(x)      what the network itself returns

Tensors that are overwritten later, as by an in-place ReLU, cannot be kept and are not among those of a probe.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn


def tensors_in(answer: Any, name: str = "output") -> dict[str, Tensor]:
    """The tensors of what a network returned: itself, or those in (nested) lists, tuples, dicts and dataclasses."""
    if isinstance(answer, Tensor):
        return {name: answer}
    if isinstance(answer, Mapping):
        parts = dict(answer)
    elif isinstance(answer, (list, tuple)):
        parts = dict(enumerate(answer))
    else:
        parts = {key: getattr(answer, key) for key in getattr(answer, "__dataclass_fields__", ())}
    return {key: tensor for part, value in parts.items() for key, tensor in tensors_in(value, f"{name}.{part}").items()}


@dataclass
class Probe:
    """What a network computed of one image.

    tensors: name -> tensor, in order of computation; of a part that runs several times, the last.
    outputs: names of those that the network returns.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    _versions: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self.tensors.pop(name, None)
            self.tensors[name], self._versions[name] = value, value._version

    def finish(self, answer: Any) -> "Probe":
        """Leave out what was overwritten, name each tensor by the last part that returned it, and add the outputs."""
        intact = {n: t for n, t in self.tensors.items() if t._version == self._versions[n]}
        names = {id(tensor): name for name, tensor in intact.items()}
        self.tensors = {names[id(tensor)]: tensor for tensor in intact.values()}
        for name, tensor in tensors_in(answer).items():
            name = names.get(id(tensor), name)
            self.tensors[name] = tensor
            self.outputs.append(name)
        return self


def _settle(module: nn.Module) -> None:
    """Frozen, in evaluation mode, and nothing overwritten that need not be."""
    module.requires_grad_(False)
    for part in module.modules():
        part.training = False  # torch.export's modules refuse eval()
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]


class Modules(nn.Module):
    """Any nn.Module; its parts are named as in named_modules()."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.names = module.eval(), list[str]()
        _settle(module)

    def probe(self, x: Tensor) -> Probe:
        return self._run(x, [name for name, _ in self.module.named_modules() if name])

    def _run(self, x: Tensor, names: Sequence[str]) -> Probe:
        found = Probe()

        def keeper(name: str) -> Callable:
            return lambda module, inputs, output: found.add(name, output)

        hooks = [self.module.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
        try:
            return found.finish(self.module(x))
        finally:
            for hook in hooks:
                hook.remove()

    def keep(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def kept(self, x: Tensor) -> list[Tensor]:
        parts = {name for name, _ in self.module.named_modules()}
        found = self._run(x, [name for name in self.names if name in parts]).tensors
        return [found[name] for name in self.names]

    def answer(self, x: Tensor) -> Any:
        return self.module(x)


class _Recorder(fx.Interpreter):
    """Runs a graph node by node, and tells each value."""

    def __init__(self, module: fx.GraphModule, found: Probe):
        super().__init__(module, garbage_collect_values=False)
        self.found = found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op.startswith("call"):
            self.found.add(n.name, value)
        return value


class Graph(nn.Module):
    """An fx GraphModule; its tensors are named as the nodes of its graph."""

    def __init__(self, module: fx.GraphModule):
        super().__init__()
        self.module = module
        _settle(module)

    def probe(self, x: Tensor) -> Probe:
        found = Probe()
        return found.finish(_Recorder(self.module, found).run(x))

    def keep(self, names: Sequence[str]) -> None:
        graph, nodes = fx.Graph(), dict[fx.Node, fx.Node]()
        graph.graph_copy(self.module.graph, nodes)
        wanted = {node.name: twin for node, twin in nodes.items()}
        graph.output(tuple(wanted[name] for name in names))
        self.cut = fx.GraphModule(self.module, graph)
        self.cut.graph.eliminate_dead_code()
        self.cut.recompile()

    def kept(self, x: Tensor) -> list[Tensor]:
        return list(self.cut(x))

    def answer(self, x: Tensor) -> Any:
        return self.module(x)


def _operator(node: Any) -> str:
    """ "relu_" of a node aten::relu_ of a TorchScript graph; "" of one that computes nothing."""
    library, _, name = node.kind().partition("::")
    return name if library != "prim" else ""


class Script(nn.Module):
    """A TorchScript module, frozen: its weights are constants of its graph. Its tensors are named by the operator that
    makes them and its place in the graph: relu_12."""

    def __init__(self, module: torch.jit.ScriptModule):
        super().__init__()
        self.original = [module]  # not a part: as it was read, for another device
        self.names, self.inner = list[str](), list[str]()
        self._freeze(torch.device("cpu"))

    def _freeze(self, device: torch.device) -> None:
        self.frozen = torch.jit.freeze(copy.deepcopy(self.original[0]).to(device).eval())
        self.device = device
        if self.names:
            self.keep(self.names)

    def __deepcopy__(self, memo: dict) -> "Script":
        """Itself: there is nothing in it that a copy may change."""
        return self

    def _apply(self, fn: Callable, recurse: bool = True) -> "Script":
        """Moves to a device as other modules do; its numbers stay float32."""
        device = fn(torch.zeros(1, device=self.device)).device
        if device != self.device:
            self._freeze(device)
        return self

    def _nodes(self) -> dict[str, int]:
        """Nodes of the graph that make tensors which no later node overwrites, by name: their place in it."""
        nodes = list(self.frozen.graph.nodes())
        overwritten = {next(node.inputs()).debugName() for node in nodes if _operator(node).endswith("_")}
        return {
            f"{_operator(node).rstrip('_')}_{place}": place
            for place, node in enumerate(nodes)
            if _operator(node)
            and node.outputsSize() == 1
            and node.output().debugName() not in overwritten
            and node.output().type().isSubtypeOf(torch._C.TensorType.get())
        }

    def _cut(self, places: Sequence[int]) -> Callable[[Tensor], tuple]:
        """A function from an image to the answer, and what the nodes at these places make."""
        graph = self.frozen.graph.copy()
        nodes, answer = list(graph.nodes()), next(graph.outputs())
        wanted = [answer, *(nodes[place].output() for place in places)]
        together = graph.create("prim::TupleConstruct", wanted, 1)
        graph.appendNode(together)
        together.output().setType(torch._C.TupleType([value.type() for value in wanted]))
        graph.eraseOutput(0)
        graph.registerOutput(together.output())
        graph.eraseInput(0)  # self, which a frozen graph does not use
        return torch._C._create_function_from_graph("forward", graph)

    def probe(self, x: Tensor) -> Probe:
        found, places = Probe(), self._nodes()
        with torch.jit.optimized_execution(False):
            answer, *values = self._cut([*places.values()])(x)
        for name, value in zip(places, values, strict=True):
            found.add(name, value)
        return found.finish(answer)

    def keep(self, names: Sequence[str]) -> None:
        places = self._nodes()
        self.names, self.inner = list(names), [name for name in names if name in places]
        self.cut = self._cut([places[name] for name in self.inner])

    def kept(self, x: Tensor) -> list[Tensor]:
        with torch.jit.optimized_execution(False):
            answer, *values = self.cut(x)
        found = tensors_in(answer) | dict(zip(self.inner, values, strict=True))
        return [found[name] for name in self.names]

    def answer(self, x: Tensor) -> Any:
        with torch.jit.optimized_execution(False):
            return self.frozen(x)
