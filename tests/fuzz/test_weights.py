"""Weights are data: no file of them runs code, and no line of the package would let it."""

import ast
from pathlib import Path

import pytest
import torch

import lora_comp as lc
from lora_comp.codecs import load_codec
from lora_comp.networks import load_network

PACKAGE = Path(lc.__file__).parent
SOURCES = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tasks").glob("*.py")]


class Opens:
    """What a pickle can do when it is loaded: call any function."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "load",
    [
        lambda path: load_network("torchvision/squeezenet1_1", weights=path),
        lambda path: load_codec("tic-s", 2, path),
    ],
    ids=["a network's checkpoint", "a codec's weights"],
)
def test_a_pickle_that_runs_code_is_refused_in_one_line(load, tmp_path):
    weights, ran = tmp_path / "weights.pt", tmp_path / "ran"
    torch.save({"state_dict": Opens(ran)}, weights)
    with pytest.raises(lc.LoraCompError) as error:
        load(weights)
    assert "\n" not in str(error.value) and str(weights) in str(error.value)
    assert not ran.exists()


def test_nothing_unpickles_more_than_tensors():
    # detectron2's own files are pickles; its reader finds nothing but numpy's arrays (tests/networks).
    nodes = [
        node
        for source in SOURCES
        if source != PACKAGE / "networks" / "detectron2.py"
        for node in ast.walk(ast.parse(source.read_text()))
    ]
    loads = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert loads
    for node in loads:
        assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True", ast.unparse(node)
    imported = {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    assert not imported & {"pickle", "marshal", "shelve", "dill", "joblib"}
