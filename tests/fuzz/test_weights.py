"""Loading a weights file never runs code from it."""

import ast
import os
from pathlib import Path

import pytest
import torch

import lora_comp as lc
from lora_comp.codecs import load_codec
from lora_comp.networks import load_network, pickles
from lora_comp.networks.checkpoints import read_checkpoint

PACKAGE = Path(lc.__file__).parent
SOURCES = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tasks").glob("*.py")]


class Opens:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "load",
    [
        lambda path: load_network("torchvision/squeezenet1_1", weights=path),
        lambda path: load_codec("tic-v", 2, path),
    ],
    ids=["a network's checkpoint", "a codec's weights"],
)
def test_pickles_that_run_code_raise_a_one_line_error(load, tmp_path):
    weights, ran = tmp_path / "weights.pt", tmp_path / "ran"
    torch.save({"state_dict": Opens(ran)}, weights)
    with pytest.raises(lc.LoraCompError) as error:
        load(weights)
    assert "\n" not in str(error.value) and str(weights) in str(error.value)
    assert not ran.exists()


class Calls:
    """Its pickle calls a function by name."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("old_format", [False, True])
def test_beside_weights_nothing_is_called(old_format, tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "weights.pt"
    calls = [
        Calls(open, str(ran), "w"),
        Calls(os.system, f"touch {ran}"),
        Calls(eval, f"open({str(ran)!r}, 'w')"),
        Calls(getattr, Calls(__import__, "os"), "getcwd"),
        Calls(torch.load, str(path)),
    ]
    torch.save({"model": {"w": torch.ones(2)}, "calls": calls}, path, _use_new_zipfile_serialization=not old_format)
    assert read_checkpoint(path)["w"].tolist() == [1, 1]
    assert all(isinstance(call, pickles.Unknown) for call in pickles.load(path)["calls"])
    assert not ran.exists()


def test_only_tensors_are_unpickled():
    # detectron2's files are pickles; our reader admits numpy arrays only (tests/networks). What training code wraps
    # around weights is read by an unpickler that makes every object of another class one without code.
    own = [PACKAGE / "networks" / name for name in ("detectron2.py", "pickles.py")]
    nodes = [node for source in SOURCES if source not in own for node in ast.walk(ast.parse(source.read_text()))]
    loads = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert loads
    for node in loads:
        assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True", ast.unparse(node)
    imported = {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    assert not imported & {"pickle", "marshal", "shelve", "dill", "joblib"}
