# ruff: noqa: E501 (tables of graphs, one to a line)
"""What the input of an ONNX file declares, and what a network does with its input first, is obeyed."""

from pathlib import Path

import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx2torch")
pytest.importorskip("onnxscript")

from onnx import numpy_helper  # noqa: E402
from test_onnx import SIDE, WEIGHTS, image, model_of, named, saved  # noqa: E402

from lora_comp.networks import load_external  # noqa: E402

BYTES = "f = Cast <to = 1> (x) "
LAST = "t = Transpose <perm = [0,3,1,2]> (f) "


@pytest.mark.parametrize(
    ("declared", "nodes", "made"),
    named(
        ("uint8-nhwc", "uint8[1,H,W,3] x", f"{BYTES}{LAST}y = Conv (t, w)", lambda x: x * 255),
        ("uint8-nchw", "uint8[N,3,H,W] x", f"{BYTES}y = Conv (f, w)", lambda x: x * 255),
        ("int8", "int8[N,3,H,W] x", f"{BYTES}y = Conv (f, w)", lambda x: x * 255 - 128),
        ("uint16", "uint16[N,3,H,W] x", f"{BYTES}y = Conv (f, w)", lambda x: x * 65535),
        ("int32", "int32[N,3,H,W] x", f"{BYTES}y = Conv (f, w)", lambda x: x * 255),
        ("int64-fixed", f"int64[1,{SIDE},{SIDE},3] x", f"{BYTES}{LAST}y = Conv (t, w)", lambda x: x * 255),
        ("double", "double[N,3,H,W] x", f"{BYTES}y = Conv (f, w)", lambda x: x),
        ("nhwc", "float[N,H,W,3] x", f"{BYTES}{LAST}y = Conv (t, w)", lambda x: x),
        ("open-nhwc", "float[N,A,B,C] x", f"{BYTES}{LAST}y = Conv (t, w)", lambda x: x),
        ("no-shape", "float x", f"{BYTES}{LAST}y = Conv (t, w)", lambda x: x),
        ("open-nchw", "float[N,A,B,C] x", f"{BYTES}y = Conv (f, w)", lambda x: x),
        ("chw", "float[3,H,W] x", f"{BYTES}i = Constant <value_ints = [0]> () u = Unsqueeze (f, i) y = Conv (u, w)", lambda x: x),
        ("hwc", "float[H,W,3] x", f"{BYTES}i = Constant <value_ints = [0]> () f1 = Unsqueeze (f, i) t = Transpose <perm = [0,3,1,2]> (f1) y = Conv (t, w)", lambda x: x),
        ("one-frame", "float[N,1,3,H,W] x", f"{BYTES}i = Constant <value_ints = [1]> () u = Squeeze (f, i) y = Conv (u, w)", lambda x: x),
        ("one-slice", "float[N,3,1,H,W] x", f"{BYTES}i = Constant <value_ints = [2]> () u = Squeeze (f, i) y = Conv (u, w)", lambda x: x),
        ("grey-nchw", "float[N,1,H,W] x", f"{BYTES}y = Conv (f, grey)", "grey"),
        ("grey-bytes-nhwc", "uint8[1,H,W,1] x", f"{BYTES}{LAST}y = Conv (t, grey)", "grey bytes"),
        ("divides", "float[N,3,H,W] x", "k = Constant <value_float = 255.0> () f = Div (x, k) y = Conv (f, w)", lambda x: x),
        ("multiplies", "float[N,H,W,3] x", "k = Constant <value_float = 0.00392157> () f = Mul (x, k) " + LAST + "y = Conv (t, w)", lambda x: x),
        ("subtracts", "float[N,3,H,W] x", "k = Constant <value_float = 120.0> () f = Sub (x, k) y = Conv (f, w)", lambda x: x * 255 - 120),
    ),
)  # fmt: skip
def test_the_declared_type_and_layout_are_obeyed(declared, nodes, made, tmp_path):
    """Also where a network of floats divides by 255 itself, or subtracts a mean of bytes."""
    model = model_of(nodes, 17, declared)
    x, kernel = image().requires_grad_(), torch.from_numpy(WEIGHTS["w"])
    if "grey" in nodes:
        kernel = kernel[:, :1]
        model.graph.initializer.append(numpy_helper.from_array(kernel.numpy(), "grey"))
        luma = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        expected = torch.conv2d(luma * (255 if "bytes" in made else 1), kernel)
    else:
        expected = torch.conv2d(made(x), kernel)
    network = load_external(saved(model, tmp_path / "net.onnx"))
    found = network(x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert torch.autograd.grad(found.sum(), x)[0].abs().sum() > 0
    two = network.stages(torch.cat([x, x.flip(3)]))[0]
    assert torch.allclose(two[1:], network.stages(x.flip(3))[0], rtol=1e-4, atol=1e-3)


class Bytes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x.float().div(255) - 0.5)


class Floats(Bytes):
    def forward(self, x):
        return self.conv((x * 255 - 120) / 60)


@pytest.mark.parametrize(("net", "white"), [(Bytes, 255), (Floats, 1)])
@pytest.mark.parametrize("form", ["traced.ts", "exported.pt2", "test_onnx_input:NAME"])
def test_what_a_network_does_first_shows_whether_it_takes_bytes(net, white, form, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    name = form.replace("NAME", net.__name__) if ":" in form else tmp_path / form
    if form.endswith("ts"):
        torch.jit.save(torch.jit.trace(net().eval(), torch.rand(1, 3, 64, 64)), name)
    elif form.endswith("pt2"):
        torch.export.save(torch.export.export(net().eval(), (torch.rand(1, 3, 64, 64),)), name)
    assert load_external(name, settings={"size": 64}).prepare.wanted.range == white
    assert load_external(name, settings={"size": 64, "range": 2}).prepare.wanted.range == 2
