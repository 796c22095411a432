"""Reading intermediate tensors of any network, in the three forms in which networks come.

    Modules   any nn.Module: hooks on its submodules read what they return
    Graph     an fx graph, as onnx2torch and torch.export make it: the graph is cut at its nodes
    Script    TorchScript: the frozen graph is cut

Each has
    module         the network itself
    probe(x)       a Probe of one forward pass
    keep(names)    chooses the tensors that kept(x) returns, in this order
    kept(x)        list of these tensors
    answer(x)      what the network itself returns

Tensors that are overwritten later, as by an in-place ReLU, cannot be kept and are left out of a probe.
"""

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn


def tensors_in(answer: Any, name: str = "output", joint: str = ".") -> dict[str, Tensor]:
    """The tensors in what a network returned: a tensor, or (nested) lists, tuples, dicts and dataclasses of them."""
    if isinstance(answer, Tensor):
        return {name: answer}
    if isinstance(answer, Mapping):
        parts = dict(answer)
    elif isinstance(answer, (list, tuple)):
        parts = dict(enumerate(answer))
    else:
        parts = {key: getattr(answer, key) for key in getattr(answer, "__dataclass_fields__", ())}
    return {
        key: tensor
        for part, value in parts.items()
        for key, tensor in tensors_in(value, f"{name}{joint}{part}", joint).items()
    }


@dataclass
class Probe:
    """The tensors that a network computed from one image.

    tensors: name -> tensor, in order of computation; of a submodule that runs several times, the last. What a submodule
        returns in a tuple, list or dict is named after it and its place there: blocks.3:0.
    outputs: names of those that the network returns.
    aliases: name -> name in `tensors`, of each submodule or node; several may return the same tensor.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    _versions: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self.tensors.pop(name, None)
            self.tensors[name], self._versions[name] = value, value._version

    def finish(self, answer: Any) -> "Probe":
        """Drop what was overwritten, name each tensor after the outermost submodule that returned it (of several the
        last), add the outputs."""
        intact = {n: t for n, t in self.tensors.items() if t._version == self._versions[n]}
        inwards = sorted(intact.items(), key=lambda one: -one[0].count("."))
        names = {id(tensor): name for name, tensor in inwards}
        self.tensors = {names[id(tensor)]: tensor for tensor in intact.values()}
        self.aliases = {name: names[id(tensor)] for name, tensor in intact.items()}
        for name, tensor in tensors_in(answer).items():
            name = names.get(id(tensor), name)
            self.tensors[name], self.aliases[name] = tensor, name
            self.outputs.append(name)
        return self

    def parts(self, name: str) -> list[str]:
        """The names in `tensors` that a submodule or node returned; for a list of submodules, that its last did."""
        if name in self.aliases:
            return [self.aliases[name]]
        inside = [found for alias, found in self.aliases.items() if alias.startswith(f"{name}:")]
        if inside:
            return list(dict.fromkeys(inside))
        listed = [int(last) for alias in self.aliases if (last := _place_in(name, alias)) is not None]
        return self.parts(f"{name}.{max(listed)}") if listed else []


def _place_in(name: str, alias: str) -> str | None:
    """ "3" of the alias blocks.3:0 in blocks."""
    found = re.fullmatch(rf"{re.escape(name)}\.(\d+)(:.*)?", alias)
    return found and found[1]


def freeze(module: nn.Module) -> None:
    """Put a network in evaluation mode, without gradients to its weights, and let no ReLU work in place: it would
    overwrite a feature after a hook has read it."""
    module.requires_grad_(False)
    for part in module.modules():
        part.training = False  # torch.export's modules refuse eval()
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]


class Modules(nn.Module):
    """Any nn.Module; its tensors are named as in named_modules()."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.names = module.eval(), list[str]()
        freeze(module)

    def probe(self, x: Tensor) -> Probe:
        return self._run(x, [name for name, _ in self.module.named_modules() if name])

    def _run(self, x: Tensor, names: Sequence[str]) -> Probe:
        probe = Probe()

        def adder(name: str) -> Callable:
            def add(module: nn.Module, inputs: Any, output: Any) -> None:
                for part, tensor in tensors_in(output, name, ":").items():
                    probe.add(part, tensor)

            return add

        hooks = [self.module.get_submodule(name).register_forward_hook(adder(name)) for name in names]
        try:
            return probe.finish(self.module(x))
        finally:
            for hook in hooks:
                hook.remove()

    def keep(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def kept(self, x: Tensor) -> list[Tensor]:
        parts = {name for name, _ in self.module.named_modules()}
        owners = {name.partition(":")[0] for name in self.names}
        probe = self._run(x, [name for name in owners if name in parts])
        return [probe.tensors[probe.aliases[name]] for name in self.names]

    def answer(self, x: Tensor) -> Any:
        return self.module(x)


class _Recorder(fx.Interpreter):
    """Runs a graph node by node and adds each value to a probe."""

    def __init__(self, module: fx.GraphModule, probe: Probe):
        super().__init__(module, garbage_collect_values=False)
        self.probe = probe

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op.startswith("call"):
            self.probe.add(n.name, value)
        return value


class Graph(nn.Module):
    """An fx GraphModule; its tensors are named as the nodes of its graph."""

    def __init__(self, module: fx.GraphModule):
        super().__init__()
        self.module = module
        freeze(module)

    def probe(self, x: Tensor) -> Probe:
        probe = Probe()
        return probe.finish(_Recorder(self.module, probe).run(x))

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


@contextmanager
def undeprecated() -> Iterator[None]:
    """Without the warnings by which torch deprecates TorchScript: who uses a file of it cannot help it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Script(nn.Module):
    """A TorchScript module, frozen: its weights are constants of its graph. Its tensors are named after the operator
    that computes them and its place in the graph: relu_12."""

    def __init__(self, module: torch.jit.ScriptModule):
        super().__init__()
        self.original = [module]  # in a list, so that it is no submodule: as it was read, for another device
        self.names, self.inner = list[str](), list[str]()
        self._freeze(torch.device("cpu"))

    def _freeze(self, device: torch.device) -> None:
        with undeprecated():
            self.module = torch.jit.freeze(copy.deepcopy(self.original[0]).to(device).eval())
        self.device = device
        if self.names:
            self.keep(self.names)

    def __deepcopy__(self, memo: dict) -> "Script":
        """Itself: nothing in it ever changes."""
        return self

    def _apply(self, fn: Callable, recurse: bool = True) -> "Script":
        """Moves to a device as other modules do; its numbers stay float32."""
        device = fn(torch.zeros(1, device=self.device)).device
        if device != self.device:
            self._freeze(device)
        return self

    def _nodes(self) -> dict[str, int]:
        """The place in the graph, by name, of each node that computes a tensor which no later node overwrites."""
        nodes = list(self.module.graph.nodes())
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
        """A function from an image to the answer and the tensors of the nodes at these places."""
        graph = self.module.graph.copy()
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
        probe, places = Probe(), self._nodes()
        with torch.jit.optimized_execution(False):
            answer, *values = self._cut([*places.values()])(x)
        for name, value in zip(places, values, strict=True):
            probe.add(name, value)
        return probe.finish(answer)

    def keep(self, names: Sequence[str]) -> None:
        places = self._nodes()
        self.names, self.inner = list(names), [name for name in names if name in places]
        self.cut = self._cut([places[name] for name in self.inner])

    def kept(self, x: Tensor) -> list[Tensor]:
        with torch.jit.optimized_execution(False):
            answer, *values = self.cut(x)
        tensors = tensors_in(answer) | dict(zip(self.inner, values, strict=True))
        return [tensors[name] for name in self.names]

    def answer(self, x: Tensor) -> Any:
        with torch.jit.optimized_execution(False):
            return self.module(x)
