"""External networks: what can be read, which of their tensors are compared, and what is said of those that cannot be
used."""

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_comp.errors import LoraCompError
from lora_comp.networks import load_external, load_network


class Detector(nn.Module):
    """Two stages, and two heads whose outputs are squashed; it overwrites what it can."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16))
        self.box, self.sure = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.body(self.stem(x)), inplace=True)
        return {"boxes": self.box(x).tanh(), "scores": self.sure(x).softmax(1)}


def detector() -> Detector:
    """The same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Detector().eval()


def onnx_detector(path, operator="Tanh", size=64, channels_last=False):
    """The detector as an ONNX file for one image of a fixed size; with another operator at its end, and taking
    (1, H, W, 3), if wanted."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx2torch")
    net, node, weights = detector(), onnx.helper.make_node, []

    def conv(name, source, into, layer):
        weights.extend(
            onnx.numpy_helper.from_array(value.detach().numpy(), f"{name}.{key}")
            for key, value in layer.named_parameters()
        )
        return node(
            "Conv",
            [source, f"{name}.weight", f"{name}.bias"],
            [into],
            strides=list(layer.stride),
            pads=[layer.padding[0]] * 4,
            kernel_shape=list(layer.kernel_size),
        )

    body = torch.nn.utils.fusion.fuse_conv_bn_eval(net.body[0], net.body[1])
    entry = (
        node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]) if channels_last else node("Identity", ["image"], ["x"])
    )
    nodes = [
        entry,
        conv("stem", "x", "a", net.stem[0]),
        node("Relu", ["a"], ["b"]),
        conv("body", "b", "c", body),
        node("Relu", ["c"], ["d"]),
        conv("box", "d", "e", net.box),
        node(operator, ["e"], ["boxes"]),
        conv("sure", "d", "f", net.sure),
        node("Softmax", ["f"], ["scores"], axis=1),
    ]
    real, shape = onnx.TensorProto.FLOAT, [1, size, size, 3] if channels_last else [1, 3, size, size]
    graph = onnx.helper.make_graph(
        nodes,
        "detector",
        [onnx.helper.make_tensor_value_info("image", real, shape)],
        [onnx.helper.make_tensor_value_info(name, real, None) for name in ("boxes", "scores")],
        weights,
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def script_of(module: nn.Module, path, size=64):
    torch.jit.save(torch.jit.trace(module.eval(), torch.rand(1, 3, size, size), strict=False), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The detector in each form that networks come in."""
    folder = tmp_path_factory.mktemp("nets")
    script_of(detector(), folder / "traced.ts")
    torch.jit.save(torch.jit.script(detector()), folder / "scripted.pt")
    torch.export.save(torch.export.export(detector(), (torch.rand(1, 3, 64, 64),)), folder / "exported.pt2")
    return folder


@pytest.mark.parametrize("form", ["traced.ts", "scripted.pt", "exported.pt2", "first.onnx", "last.onnx"])
def test_in_every_form_its_stages_and_the_logits_before_its_outputs_are_matched(files, form):
    """Neither those before a ReLU that overwrites them, nor what a tanh or softmax makes of the logits."""
    if form.endswith("onnx"):
        onnx_detector(files / form, channels_last=form == "last.onnx")
    network, net, x = load_external(files / form), detector(), torch.rand(2, 3, 64, 64, requires_grad=True)
    with torch.no_grad():
        stem = net.stem(x)
        body = net.body(stem).relu()
        expected = [stem, body, net.box(body), net.sure(body)]
    found = network.stages(x)
    for tensor, same in zip(found, expected, strict=True):
        assert torch.allclose(tensor, same, atol=1e-5)
    assert torch.autograd.grad(sum(tensor.sum() for tensor in found), x)[0].abs().sum() > 0


def test_of_a_module_what_its_parts_return_is_matched_unless_it_is_overwritten(tmp_path, monkeypatch):
    (tmp_path / "nets_of_mine.py").write_text(
        f"import sys; sys.path.append({str(__file__).rpartition('/')[0]!r}); from test_external import detector\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_external("nets_of_mine:detector").layers == ["stem", "body.0", "box", "sure"]


def test_of_a_function_that_returns_timms_network_timms_stages_are_matched(tmp_path, monkeypatch):
    (tmp_path / "nets_of_timm.py").write_text(
        "import timm\n\ndef small():\n    return timm.create_model('test_resnet')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_external("nets_of_timm:small").layers == ["layer1", "layer2", "layer3", "layer4", "fc"]


def test_a_compiled_network_is_matched_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "nets_compiled.py").write_text(
        f"import sys\nimport torch\nsys.path.append({str(__file__).rpartition('/')[0]!r})\n"
        "from test_external import detector\n"
        "def make():\n    return torch.compile(detector())\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_external("nets_compiled:make").layers == ["stem", "body.0", "box", "sure"]


def test_a_transformer_in_torchscript_is_matched_along_its_depth_and_at_the_size_it_takes(tmp_path):
    import timm

    tiny = timm.create_model("vit_tiny_patch16_224", patch_size=32, embed_dim=48)
    network = load_external(script_of(tiny, tmp_path / "tiny.pt", 224))
    assert network.prepare.wanted.size == (224, 224)
    assert [tuple(stage.shape[1:]) for stage in network.stages(torch.rand(1, 3, 60, 90))] == 4 * [(50, 48)] + [(1000,)]


def test_a_segmenter_returns_a_dict_and_takes_any_size():
    network = load_external("torchvision/lraspp_mobilenet_v3_large", weights=None)
    assert network.layers[-2:] == ["classifier.low_classifier", "classifier.high_classifier"]
    assert list(network(torch.rand(1, 3, 40, 70))) == ["out"]


def test_a_torchscript_file_is_used_without_torchs_warnings_to_its_author(files, recwarn):
    network = load_external(files / "scripted.pt")
    network.to("cpu").stages(torch.rand(1, 3, 64, 64))
    assert [str(one.message) for one in recwarn if one.category is not DeprecationWarning] == []


def test_layers_can_be_named(files):
    assert load_external(files / "exported.pt2", layers=["softmax", "conv2d_2"]).layers == ["conv2d_2", "softmax"]


def test_a_network_for_one_image_sees_several_one_after_the_other(tmp_path):
    network, x = load_external(onnx_detector(tmp_path / "one.onnx")), torch.rand(3, 3, 50, 70)
    assert network.one_image
    for together, alone in zip(network.stages(x), network.stages(x[2:]), strict=True):
        assert torch.allclose(together[2:], alone)


def test_networks_with_other_settings_have_another_identity(files):
    one, same, other = (load_external(files / "traced.ts", settings=given) for given in ({}, None, {"channels": "bgr"}))
    assert one.identity == same.identity != other.identity
    assert one.identity.startswith("traced-")


# What cannot be used


class Words(nn.Module):
    def forward(self, x):
        return "a cat"


class Counts(nn.Module):
    def forward(self, x):
        return (x > 0.5).sum((2, 3)).float()


class Halves(nn.Module):
    """Needs sides that halve five times, as many segmenters do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 32, 1)

    def forward(self, x):
        return x[:, :1] + F.interpolate(self.conv(x)[:, :1], scale_factor=32)


def of_no_use(folder):
    """Files and names, and what is said of them."""
    (folder / "text.onnx").write_text("this is no network\n")
    (folder / "empty.onnx").write_bytes(b"")
    torch.save(detector().state_dict(), folder / "checkpoint.pt")
    (folder / "text.pt").write_text("this is no network\n")
    (folder / "text.pt2").write_text("this is no network\n")
    return {
        folder / "text.onnx": "is not an ONNX file",
        folder / "empty.onnx": "is not an ONNX file",
        folder / "checkpoint.pt": "is not a TorchScript file",
        folder / "text.pt": "is not a TorchScript file",
        folder / "text.pt2": "is not a torch.export file",
        folder / "missing.onnx": "there is no file",
        onnx_detector(folder / "odd.onnx", "Det"): "its operator Det",
        script_of(Counts(), folder / "counts.pt"): "no layer of",
        "nowhere:make": "No module named 'nowhere'",
        "test_external:nothing": "has no attribute 'nothing'",
        "test_external:Words": "returns no tensor",
        "builtins:dict": "returns a dict, not a torch.nn.Module",
        "nowhere": "unknown network 'nowhere'",
        "torchvision/nowhere": "torchvision has no model 'nowhere'",
        "timm/nowhere": "timm has no model 'nowhere'",
    }


def test_what_is_no_network_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    for name, says in of_no_use(tmp_path).items():
        with pytest.raises(LoraCompError) as error:
            load_external(name)
        assert says in str(error.value) and "\n" not in str(error.value), name


def test_an_unknown_layer_is_told_with_some_that_are_known(files):
    with pytest.raises(LoraCompError, match=r"the layer 'conv' of .* is unknown; there are \d+, such as conv2d"):
        load_external(files / "exported.pt2", layers=["conv"])


def test_without_onnx2torch_it_is_told_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(b"a")
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(LoraCompError, match=r"pip install 'lora_comp\[onnx\]'"):
        load_external(tmp_path / "a.onnx")


# Sizes


class Half(nn.Module):
    """Takes images of one size alone."""

    def __init__(self, side: int):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 8, 1)
        self.head = nn.Linear(4 * (side // 8) ** 2, 5)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).flatten(1))


class Fails(nn.Module):
    """Refuses dark images, of whatever size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 8, 1)

    def forward(self, x):
        if not x.any():
            raise ValueError("it is\ndark")
        return self.conv(x)


SIZES = [(1, 1), (16, 16), (40, 50), (131, 97), (1, 300), (300, 2), (320, 256)]


@pytest.mark.parametrize("size", SIZES)
def test_images_are_padded_to_a_size_that_a_network_can_halve(size, tmp_path):
    network, x = load_external(script_of(Halves(), tmp_path / "halves.pt")), torch.rand(2, 3, *size, requires_grad=True)
    stages, again = network.stages(x), network.stages(x)
    rows, columns = (-(-side // 32) for side in size)
    assert stages[0].shape[2:] == (rows, columns)
    assert all(torch.equal(one, same) for one, same in zip(stages, again, strict=True))
    assert torch.autograd.grad(sum(stage.sum() for stage in stages), x)[0].abs().sum() > 0


@pytest.mark.parametrize("size", SIZES)
def test_a_network_of_one_size_gets_images_of_that_size(size, tmp_path):
    network = load_external(script_of(Half(224), tmp_path / "half.pt", 224))
    assert network.stages(torch.rand(1, 3, *size))[0].shape[2:] == (28, 28)


@pytest.mark.parametrize(
    "name, sizes",
    {
        "timm/hrnet_w18_small": [(1, 1), (131, 97)],
        "timm/dla34": [(1, 200), (131, 97)],
        "timm/test_coatnet": [(1, 1), (320, 256)],
        "torchvision/maxvit_t": [(320, 256)],
    }.items(),
)
def test_classifiers_of_the_libraries_take_images_of_any_size(name, sizes):
    network = load_network(name, None)
    for size in sizes:
        x = torch.rand(1, 3, *size, requires_grad=True)
        stages = network.stages(x)
        assert network(x).shape == (1, 1000) and all(torch.isfinite(stage).all() for stage in stages)
        assert torch.autograd.grad(sum(stage.sum() for stage in stages), x)[0].any()


def test_an_image_that_a_network_takes_stays_as_it_is(tmp_path):
    network, x = load_external(script_of(Halves(), tmp_path / "halves.pt")), torch.rand(1, 3, 64, 96)
    network.stages(x)
    assert not network.prepare.fits and torch.equal(network.prepare(x), x)


def test_what_no_other_size_helps_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "nets_that_fail.py").write_text(
        f"import sys; sys.path.append({str(__file__).rpartition('/')[0]!r}); from test_external import Fails\n"
    )
    monkeypatch.chdir(tmp_path)
    network = load_external("nets_that_fail:Fails")
    with pytest.raises(LoraCompError, match=r"cannot take an image of 40x50: it is dark$"):
        network.stages(torch.zeros(1, 3, 40, 50))
    assert not network.prepare.fits
    assert network.stages(torch.ones(1, 3, 40, 50))
