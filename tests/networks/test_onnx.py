# ruff: noqa: E501, F541 (tables of graphs, one to a line)
"""ONNX files as people have them, against ONNX's own evaluator."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx2torch")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper, parser  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from lora_comp.errors import LoraCompError  # noqa: E402
from lora_comp.networks import load_external  # noqa: E402
from lora_comp.networks.onnx_convert import convert  # noqa: E402

SIDE = 16


def weights(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


WEIGHTS = {
    "w": weights(4, 3, 3, 3),
    "b": weights(4, seed=1),
    "w2": weights(4, 4, 1, 1, seed=2),
    "up": weights(4, 4, 2, 2, seed=3),
    "s4": np.abs(weights(4, seed=4)) + 0.5,
    "s2": np.abs(weights(2, seed=5)) + 0.5,
    "b2": weights(2, seed=6),
    "s16": np.abs(weights(16, seed=7)) + 0.5,
    "m": weights(16, 8, seed=8),
}


def model_of(nodes, opset=17, image=f"float[1,3,{SIDE},{SIDE}] x", ir=8, domains=""):
    """A model of nodes in ONNX's text form: from x to y, with those of WEIGHTS that they read."""
    text = f'<ir_version: {ir}, opset_import: ["": {opset}{domains}]> net ({image}) => (float y) {{ {nodes} }}'
    model = parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in WEIGHTS.items() if n in read)
    return model


def saved(model, path):
    onnx.save(model, path)
    return path


def image(*shape):
    return torch.from_numpy(np.random.default_rng(9).random(shape or (1, 3, SIDE, SIDE)).astype(np.float32))


def check(model, twin=None, tolerance=1e-4):
    """The converted model gives what ONNX's evaluator does, of its twin if that knows no such version, and a gradient
    to its input."""
    x = image().requires_grad_()
    expected = ReferenceEvaluator(twin or model).run(None, {"x": x.detach().numpy()})
    found = convert(model)(x)
    found = list(found) if isinstance(found, (list, tuple)) else [found]
    assert len(found) == len(expected)
    for one, same in zip(found, expected, strict=True):
        assert one.shape == same.shape
        assert np.allclose(one.detach().numpy(), same, rtol=tolerance, atol=tolerance)
    total = sum(one.square().sum() for one in found if one.requires_grad)
    assert torch.autograd.grad(total, x)[0].abs().sum() > 0


def named(*cases):
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


CONV = "a = Conv <pads = [1,1,1,1]> (x, w, b)"


@pytest.mark.parametrize(
    ("opset", "nodes", "twin"),
    named(
        ("broadcast-6", 6, "a = Conv (x, w) y = Add <broadcast = 1, axis = 1> (a, b)", "y = Conv (x, w, b)"),
        ("batch-norm-5", 5, "a = Conv (x, w) y = BatchNormalization <is_test = 1, consumed_inputs = [0,0,0,1,1]> (a, s4, b, b, s4)", "a = Conv (x, w) y = BatchNormalization (a, s4, b, b, s4)"),
        ("relu-1", 5, "a = Conv (x, w, b) y = Relu <consumed_inputs = [0]> (a)", "a = Conv (x, w, b) y = Relu (a)"),
        ("computed-clip", 17, f"{CONV} h = ReduceMax <keepdims = 0> (a) l = Neg (h) y = Clip (a, l, h)", None),
        ("clip-6", 9, f"{CONV} y = Clip <min = -0.2, max = 0.3> (a)", None),
        ("clip-one-bound", 13, f"{CONV} h = Constant <value_float = 0.2> () y = Clip (a, , h)", None),
        ("pad-2", 9, "y = Pad <pads = [0,0,1,2,0,0,3,1], mode = \"reflect\"> (x)", None),
        ("pad-edge", 13, "p = Constant <value_ints = [0,0,1,2,0,0,3,1]> () y = Pad <mode = \"edge\"> (x, p)", None),
        ("pad-axes", 18, "p = Constant <value_ints = [1,2]> () i = Constant <value_ints = [-1]> () y = Pad (x, p, , i)", None),
        ("pad-wrap", 19, "p = Constant <value_ints = [0,0,1,2,0,0,3,1]> () y = Pad <mode = \"wrap\"> (x, p)", None),
        ("upsample-9", 9, "s = Constant <value = float[4] {1,1,2,2}> () y = Upsample <mode = \"linear\"> (x, s)", 's = Constant <value_ints = [1, 3, 32, 32]> () y = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric"> (x, , , s)'),
        ("resize-10", 10, "s = Constant <value = float[4] {1,1,2,3}> () y = Resize (x, s)", 's = Constant <value_ints = [1, 3, 32, 48]> () y = Resize <coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , , s)'),
        ("split-2", 11, f"{CONV} c, d = Split <axis = 1, split = [1, 3]> (a) y = Mul (c, d)", None),
        ("split-13", 13, f"{CONV} c, d = Split <axis = 1> (a) y = Mul (c, d)", None),
        ("split-18", 18, f"{CONV} c, d, e = Split <axis = -1, num_outputs = 3> (a) f = ReduceSum (c) y = Mul (d, f)", None),
        ("reduce-13", 13, f"{CONV} y = ReduceMean <axes = [2,3], keepdims = 0> (a)", None),
        ("reduce-18", 18, f"{CONV} i = Constant <value_ints = [2,3]> () y = ReduceL2 <keepdims = 0> (a, i)", None),
        ("squeeze-11", 11, f"{CONV} c = GlobalAveragePool (a) d = Squeeze <axes = [2,3]> (c) y = Unsqueeze <axes = [0]> (d)", None),
        ("squeeze-21", 21, f"{CONV} c = GlobalMaxPool (a) i = Constant <value_ints = [2,3]> () y = Squeeze (c, i)", None),
        ("softmax-11", 11, f"{CONV} y = Softmax (a)", f'{CONV} i = Constant <value_ints = [1, -1]> () f = Reshape (a, i) s = Softmax (f) t = Shape (a) y = Reshape (s, t)'),
        ("softmax-13", 13, f"{CONV} y = Softmax (a)", None),
        ("gelu-20", 20, f"{CONV} y = Gelu <approximate = \"tanh\"> (a)", None),
        ("mish-18", 18, f"{CONV} y = Mish (a)", None),
        ("hard-swish", 14, f"{CONV} y = HardSwish (a)", None),
        ("hard-sigmoid", 11, f"{CONV} y = HardSigmoid <alpha = 0.1, beta = 0.4> (a)", None),
        ("group-norm-18", 18, f"{CONV} y = GroupNormalization <num_groups = 2> (a, s2, b2)", None),
        ("group-norm-21", 21, f"{CONV} y = GroupNormalization <num_groups = 2> (a, s4, b)", None),
        ("instance-norm", 11, f"{CONV} y = InstanceNormalization (a, s4, b)", None),
        ("layer-norm", 17, f"{CONV} y = LayerNormalization (a, s16)", None),
        ("rms-norm", 23, f"{CONV} y = RMSNormalization (a, s16)", None),
        ("batch-norm", 9, f"{CONV} y = BatchNormalization (a, s4, b, b, s4)", f'{CONV} y = BatchNormalization (a, s4, b, b, s4)'),
        ("auto-pad", 11, "a = Conv <auto_pad = \"SAME_UPPER\", strides = [2,2]> (x, w) y = MaxPool <auto_pad = \"SAME_LOWER\", kernel_shape = [2,2]> (a)", None),
        ("uneven-pads", 11, "y = Conv <pads = [0,1,1,0], dilations = [2,1]> (x, w, b)", None),
        ("average-pool", 19, f"{CONV} y = AveragePool <kernel_shape = [3,3], strides = [2,2], pads = [0,0,1,1]> (a)", None),
        ("transposed", 11, f"{CONV} y = ConvTranspose <strides = [2,2], pads = [0,1,1,0], output_padding = [1,0]> (a, up, b)", None),
        ("cumsum", 14, f"{CONV} i = Constant <value = int64 {{3}}> () y = CumSum (a, i)", None),
        ("cumsum-back", 14, f"{CONV} i = Constant <value = int64 {{-1}}> () y = CumSum <reverse = 1, exclusive = 1> (a, i)", None),
        ("einsum", 12, f"{CONV} y = Einsum <equation = \"nchw,wk->nchk\"> (a, m)", None),
        ("slice-back", 13, "i = Constant <value_ints = [-1]> () e = Constant <value_ints = [-100]> () j = Constant <value_ints = [3]> () y = Slice (x, i, e, j, i)", None),
        ("gather-back", 13, "i = Constant <value_ints = [-1,0]> () y = Gather <axis = 2> (x, i)", None),
        ("top-k", 11, f"{CONV} k = Constant <value = int64[1] {{3}}> () y, i = TopK (a, k)", None),
        ("dropout", 10, f"{CONV} y, mask = Dropout (a)", None),
        ("depth-to-space", 13, f"{CONV} c = DepthToSpace <blocksize = 2, mode = \"CRD\"> (a) y = SpaceToDepth <blocksize = 4> (c)", None),
        ("quantised", 13, f"{CONV} s = Constant <value_float = 0.02> () z = Constant <value = uint8 {{100}}> () c = QuantizeLinear (a, s, z) y = DequantizeLinear (c, s, z)", f'{CONV} s = Constant <value_float = 0.02> () z = Constant <value = uint8 {{100}}> () c = QuantizeLinear (a, s, z) y = DequantizeLinear (c, s, z)'),
        ("floor-of-bytes", 13, f"k = Constant <value_float = 255.0> () a = Mul (x, k) c = Cast <to = 2> (a) d = Cast <to = 1> (c) y = Conv (d, w)", None),
        ("shapes", 15, f"{CONV} s = Shape <start = 2> (a) n = Constant <value_ints = [1, 4]> () t = Concat <axis = 0> (n, s) y = Reshape (a, t)", None),
        ("constant-branch", 16, f"{CONV} t = Constant <value = bool {{1}}> () y = If (t) <then_branch = one () => (float c) {{ c = Relu (a) }}, else_branch = two () => (float d) {{ d = Neg (a) }}>", None),
        ("identity-of-weights", 17, f"q = Identity (b) a = Conv (x, w, q) y = Conv (a, w2, q)", None),
        ("weights-computed", 13, "h = Constant <value_float = 2.0> () v = Mul (w, h) y = Conv (x, v, b)", None),
    ),
)  # fmt: skip
def test_operators_of_all_versions_are_right_and_have_a_gradient(opset, nodes, twin):
    check(model_of(nodes, opset), twin and model_of(twin, 21))


RESIZES = [
    (mode, way, extra)
    for mode in ("nearest", "linear", "cubic")
    for way in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    for extra in ("", ", antialias = 1", ", exclude_outside = 1", ', nearest_mode = "ceil"')
    if (mode == "nearest") == ("nearest_mode" in extra) or not extra
]


@pytest.mark.parametrize(("mode", "way", "extra"), RESIZES)
@pytest.mark.parametrize("sides", ["32, 48", "7, 11"])
def test_every_way_of_resizing_is_right(mode, way, extra, sides):
    target = f"t = Constant <value_ints = [1, 3, {sides}]> ()"
    attributes = f'mode = "{mode}", coordinate_transformation_mode = "{way}"{extra}'
    check(model_of(f"{target} y = Resize <{attributes}> (x, , , t)", 18))


# Weights and graphs as exporters write them


def constant_nodes(model):
    """Weights as nodes, as Paddle exports them."""
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    rest = [*model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes + rest)


def shared(model):
    """Equal weights shared through Identity, as torch.onnx exports them."""
    nodes = [helper.make_node("Identity", ["b"], ["b_of_another"]), *model.graph.node]
    nodes[-1].input[2] = "b_of_another"
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def listed(model):
    """Weights among the inputs, as before version 4 of the file format."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))


def unsorted(model):
    nodes = [*model.graph.node][::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def alike(model):
    """Names that meet once dots and counters are added."""
    for node, name in zip(model.graph.node, ("c_1", "c", "c"), strict=True):
        node.name = name


def quantised(model):
    """Weights as int8 with scales."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    array = numpy_helper.to_array(tensor)
    scale = np.float32(np.abs(array).max() / 127)
    tensor.CopyFrom(numpy_helper.from_array((array / scale).round().astype(np.int8), "w_int8"))
    model.graph.initializer.append(numpy_helper.from_array(scale, "w_scale"))
    rest = [helper.make_node("DequantizeLinear", ["w_int8", "w_scale"], ["w"]), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(rest)


def with_function(model):
    """A function of the model's own, as torch.onnx exports modules."""
    opset = helper.make_opsetid("", 17)
    body = [helper.make_node("Conv", ["p", "q", "r"], ["s"])]
    model.functions.append(helper.make_function("mine", "Layer", ["p", "q", "r"], ["s"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[-1].CopyFrom(helper.make_node("Layer", ["r", "w2", "b"], ["y"], domain="mine"))


def wrong_shapes(model):
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 9, 3, 3]))


FORMS = [constant_nodes, shared, listed, unsorted, alike, quantised, with_function, wrong_shapes]


@pytest.mark.parametrize("change", FORMS)
def test_however_weights_and_nodes_are_written_the_network_is_the_same(change):
    model = model_of("a = Conv (x, w, b) r = Relu (a) y = Conv (r, w2, b)")
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    change(twin)
    x = image()
    tolerance = 1e-2 if change is quantised else 1e-6
    assert torch.allclose(convert(twin)(x), convert(model)(x), atol=tolerance)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_other_precisions_are_computed_in_float32(kind, tmp_path):
    model = model_of(f"c = Cast <to = {kind}> (x) a = Conv (c, w, b) y = Relu (a)")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(helper.make_tensor(tensor.name, kind, tensor.dims, numpy_helper.to_array(tensor).flatten()))
    model.graph.input[0].type.tensor_type.elem_type = kind
    model.graph.output[0].type.tensor_type.elem_type = kind
    network, x = load_external(saved(model, tmp_path / "net.onnx")), image().requires_grad_()
    y = network(x)
    expected = torch.conv2d(x, torch.from_numpy(WEIGHTS["w"]), torch.from_numpy(WEIGHTS["b"])).relu()
    assert y.dtype == torch.float32 and torch.allclose(y, expected, atol=2e-2)
    assert torch.autograd.grad(y.sum(), x)[0].abs().sum() > 0


def test_weights_in_a_file_beside_it_are_read_and_missed_in_one_line(tmp_path):
    model = model_of("a = Conv (x, w, b) y = Relu (a)")
    path = tmp_path / "net.onnx"
    expected = convert(model)(image())
    onnx.save(model, path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    assert torch.equal(load_external(path)(image()), expected)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(LoraCompError, match=r"has weights in another file, which cannot be read: .*net\.onnx\.data"):
        load_external(path)


# What cannot be used


@pytest.mark.parametrize(
    ("model", "says"),
    named(
        ("operator", model_of("y = Celu2 (x)"), r"its operator Celu2 \(node Celu2\) is unknown"),
        ("domain", model_of("y = com.microsoft.FusedConv (x, w)", domains=', "com.microsoft": 1'), "operator FusedConv .* is onnxruntime's own"),
        ("integers-alone", model_of("z = Cast <to = 2> (x) y = MatMulInteger (z, z)"), "operator MatMulInteger .* has no gradient"),
        ("branch", model_of("s = ReduceSum <keepdims = 0> (x) z = Constant <value_float = 1.0> () c = Less (s, z) y = If (c) <then_branch = one () => (float e) { e = Relu (x) }, else_branch = two () => (float d) { d = Neg (x) }>"), r"operator If .* branches on what it computes"),
        ("no-weights", model_of("y = Conv (x, nowhere)"), r"operator Conv \(node Conv\) reads nowhere, which the file does not have"),
        ("attribute", model_of('y = Gelu <approximate = "none", alpha = 1> (x)', 20), r"operator Gelu \(node Gelu\): .*alpha"),
        ("output", model_of("v, i = MaxPool <kernel_shape = [2,2]> (x) z = Cast <to = 1> (i) y = Add (z, v)"), r"operator MaxPool .*its output i"),
        ("shape", model_of("y = Conv (x, w2)"), r"does not run on an image of 16x16: operator Conv, node Conv: "),
        ("two-inputs", model_of("y = Add (x, z)", image="float[1,3,8,8] x, float[1,3,8,8] z"), r"does not take one image .* but x \[1, 3, 8, 8\], z"),
        ("vector", model_of("y = Relu (x)", image="float[1,3] x"), r"does not take one image .* but x \[1, 3\]"),
        ("four-channels", model_of("y = Relu (x)", image="float[1,4,8,8] x"), r"does not take one image of three channels or one"),
        ("video", model_of("y = Relu (x)", image="float[1,8,3,16,16] x"), "does not take one image"),
        ("bool", model_of("y = Not (x)", image="bool[1,3,8,8] x"), "takes an image of type BOOL"),
        ("integers", model_of("y = ArgMax (x)"), "no layer of .* has a gradient"),
    ),
)  # fmt: skip
def test_what_cannot_be_used_is_told_in_one_line(model, says, tmp_path):
    with pytest.raises(LoraCompError, match=says) as error:
        load_external(saved(model, tmp_path / "net.onnx"))
    assert "\n" not in str(error.value)


def broken(content):
    return {
        "empty": (b"", "is not an ONNX file"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
        "text": (b"<html>404</html>", "is not an ONNX file"),
        "half": (content[: len(content) // 2], "is not an ONNX file, or not a whole one"),
        "tail": (content[:-3], "is not an ONNX file, or not a whole one"),
        "other": (helper.make_tensor("t", 1, [2], [0.0, 1.0]).SerializeToString(), "is not an ONNX file"),
        "zip": (b"PK\x03\x04" + b"\0" * 50, "is not an ONNX file"),
    }


@pytest.mark.parametrize("kind", broken(b""))
def test_a_file_that_is_not_whole_or_something_else_is_told_in_one_line(kind, tmp_path):
    content, says = broken(model_of("a = Conv (x, w, b) y = Relu (a)").SerializeToString())[kind]
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(LoraCompError, match=says) as error:
        load_external(tmp_path / "net.onnx")
    assert "\n" not in str(error.value)


# Files from elsewhere


@pytest.mark.data
@pytest.mark.parametrize("name", ["ppocrv4-det", "yolox-nano-coco", "fastestdet-coco"])
def test_published_networks_load_and_have_a_gradient(name, shared):
    network = load_external(shared / "nets" / f"{name}.onnx")
    x = torch.rand(1, 3, 64, 96).requires_grad_()
    total = sum(stage.square().mean() for stage in network.stages(x))
    assert torch.autograd.grad(total, x)[0].abs().sum() > 0


FOLDER = Path(os.environ.get("LORA_COMP_ONNX", "no folder"))  # of exports, as docs/onnx.md lists them


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.onnx")), ids=lambda path: path.stem)
def test_exports_give_what_onnxruntime_gives(path):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    first = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else (1, 3, 320, 320)[axis] for axis, side in enumerate(first.shape)]
    x = image(*shape)
    kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[first.type]
    expected = session.run(None, {first.name: x.numpy().astype(kind)})
    found = convert(onnx.load(path))(x)
    for one, same in zip(found if isinstance(found, (list, tuple)) else [found], expected, strict=True):
        assert np.abs(one.detach().numpy() - same).max() <= 1e-2 * max(1, np.abs(same).max())
