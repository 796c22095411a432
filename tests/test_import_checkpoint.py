"""`lora-comp import`: converted checkpoints give identical results."""

import json
import zipfile

import pytest
import torch

import lora_comp as lc
from lora_comp import cli
from lora_comp.methods import load_method
from lora_comp.methods.low_rank import seeded, with_adapter

SIZE = 64


def published_name(name: str) -> str:
    """The inverse of `reference.our_name` for the entries of this test."""
    side, index, rest = name.split(".", 2)
    return f"module.{side}{index}." + rest.replace("blocks.", "residual_group.blocks.")


@pytest.fixture(scope="module")
def state():
    """A seeded tic under the published names, with a non-zero adapter."""
    codec = lc.load_codec("tic", 1, weights=None)
    torch.manual_seed(0)
    state = {published_name(n): p for n, p in codec.named_parameters() if not n.startswith("entropy_bottleneck")}
    for name, value in seeded(codec, {"S": 0.0}).tensors.items():
        layer, kind = published_name(name).rsplit(".", 1)
        state[f"{layer}.w_lora_{kind}"] = value + torch.rand_like(value) / 4
    return state


@pytest.fixture(scope="module")
def image():
    torch.manual_seed(0)
    return torch.rand(1, 3, SIZE, SIZE)


def test_an_imported_codec_matches_the_checkpoint(tmp_path, state, image, capsys):
    bare = {name: value for name, value in state.items() if "lora" not in name}
    torch.save(bare, tmp_path / "base_codec_2.pth.tar")
    into = tmp_path / "a folder"
    words = ["import", str(tmp_path / "base_codec_2.pth.tar"), "--system", "tic", "quality=2", f"into={into}"]
    assert cli.command(words) == 0
    path = into / "base_codec_2.safetensors"
    assert f"codec=tic codec.weights={path} quality=2" in capsys.readouterr().out
    with torch.no_grad():
        ours, theirs = lc.load_codec("tic", 2, path)(image), lc.from_reference("tic", bare)(image)
    assert torch.equal(ours["x_hat"], theirs["x_hat"])


def test_an_imported_adapter_matches_the_checkpoint(tmp_path, state, image):
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "cls.pth.tar")
    assert cli.command(["import", str(tmp_path / "cls.pth.tar"), "--system", "tic_svdlora", f"into={tmp_path}"]) == 0
    codec = lc.load_codec("tic", 1, tmp_path / "cls.safetensors")
    method = load_method("svd_lora", codec, adapter=tmp_path / "cls-adapter.safetensors")
    with torch.no_grad():
        ours = with_adapter(codec, method.adapter)(image)
        theirs, plain = lc.from_reference("tic_svdlora", state)(image), codec(image)
    assert torch.equal(ours["x_hat"], theirs["x_hat"])
    assert not torch.equal(ours["x_hat"], plain["x_hat"])


@pytest.mark.parametrize("name", ["cls.safetensors", "cls-adapter.safetensors"])
def test_weights_that_exist_are_replaced_only_when_told(tmp_path, state, capsys, name):
    torch.save(state, tmp_path / "cls.pth.tar")
    (tmp_path / name).write_text("mine")
    words = ["import", str(tmp_path / "cls.pth.tar"), "--system", "tic_svdlora", f"into={tmp_path}"]
    assert cli.command(words) == 2
    assert f"{tmp_path / name} exists and would be lost" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
    assert cli.command([*words, "--overwrite"]) == 0
    assert lc.load_codec("tic", 1, tmp_path / "cls.safetensors")


@pytest.mark.slow
@pytest.mark.data
def test_an_imported_stf_codes_images(shared, tmp_path, capsys, make_image):
    keys = json.loads((shared / "golden" / "stf.keys.json").read_text())
    torch.manual_seed(0)
    state = {k: torch.randn(shape) / max(sum(shape), 1) ** 0.5 for k, shape in keys.items()}
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "stf_0067.pth.tar")
    words = ["import", str(tmp_path / "stf_0067.pth.tar"), "--system", "stf", "quality=3", f"into={tmp_path}"]
    assert cli.command(words) == 0
    path = tmp_path / "stf_0067.safetensors"
    assert f"codec=stf codec.weights={path} quality=3" in capsys.readouterr().out
    codec = lc.load_codec("stf", 3, path)
    coded = lc.encode(make_image(50, 70), codec, method="none")
    assert coded.quality == 3 and lc.decode(coded.data, codec).shape == (3, 50, 70)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("system", ["alice", "calice"])
def test_an_imported_alice_codes_images_at_the_rate_of_its_adapter(shared, tmp_path, capsys, make_image, system):
    """And a CALICE at any between that and the one of the codec."""
    keys = json.loads((shared / "golden" / "alice.keys.json").read_text())
    torch.manual_seed(0)
    state = {k: torch.randn(shape) / max(sum(shape), 1) ** 0.5 for k, shape in keys.items()}
    state |= {k: v / 50 for k, v in state.items() if k.endswith("W_b")}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "013_checkpoint.pth.tar")
    words = ["import", str(tmp_path / "013_checkpoint.pth.tar"), "--system", system, "quality=6"]
    words += ["target=4"] if system == "alice" else []
    assert cli.command([*words, f"into={tmp_path}"]) == 0
    codec_file, adapter_file = (tmp_path / f"013_checkpoint{end}.safetensors" for end in ("", "-adapter"))
    out = capsys.readouterr().out
    assert f"codec=stf codec.weights={codec_file} quality=6" in out
    assert f"method={system} method.adapter={adapter_file}" in out
    codec = lc.load_codec("stf", 6, codec_file)
    method = load_method(system, codec, adapter=str(adapter_file))
    if system == "calice":
        assert lc.encode(make_image(50, 70), codec, lc.load_task("human"), method.at(2.5)).quality == 2.5
        method = method.at(1)
    assert method.target == (4 if system == "alice" else 1)
    x = make_image(64, 64)[None]
    theirs = lc.from_reference(system, state)
    with torch.no_grad():
        made = method.prepare(codec, x).codec
        y, y_hat = theirs.latents(x)["y"], theirs.rate(theirs.latents(x)).y_hat
        assert (made.latents(x)["y"] - y).abs().max() <= 1e-4 * y.std()
        expected = theirs.synthesize(y_hat)
        assert (made.synthesize(y_hat) - expected).abs().max() <= 1e-4 * expected.std()
    coded = lc.encode(make_image(50, 70), codec, lc.load_task("human"), method)
    assert lc.decode(coded.data, codec, adapter=adapter_file).shape == (3, 50, 70)


@pytest.mark.data
def test_a_checkpoint_with_all_published_keys_is_imported(shared, tmp_path, image):
    keys = json.loads((shared / "golden" / "tic_svdlora.keys.json").read_text())
    torch.save({"state_dict": {k: torch.full(shape, 0.01) for k, shape in keys.items()}}, tmp_path / "cls.pth.tar")
    assert cli.command(["import", str(tmp_path / "cls.pth.tar"), "--system", "tic_svdlora", f"into={tmp_path}"]) == 0
    assert (tmp_path / "cls-adapter.safetensors").exists()


@pytest.mark.data
def test_an_imported_transtic_codes_images_as_the_checkpoint_does(shared, tmp_path, capsys, image):
    keys = json.loads((shared / "golden" / "transtic.keys.json").read_text())
    torch.manual_seed(0)
    state = {k: torch.randn(shape) / max(sum(shape), 1) ** 0.5 for k, shape in keys.items()}
    state |= {k: v.abs() + 0.5 for k, v in state.items() if k.endswith("running_var")}
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "cls_2.pth.tar")
    words = ["import", str(tmp_path / "cls_2.pth.tar"), "--system", "transtic", "quality=2", f"into={tmp_path}"]
    assert cli.command(words) == 0
    codec_file, adapter_file = (tmp_path / f"cls_2{end}.safetensors" for end in ("", "-adapter"))
    out = capsys.readouterr().out
    assert f"codec=tic codec.weights={codec_file} quality=2" in out
    assert f"method=transtic method.adapter={adapter_file}" in out
    codec = lc.load_codec("tic", 2, codec_file)
    method = load_method("transtic", codec, adapter=str(adapter_file))
    with torch.no_grad():
        ours, theirs = method.prepare(codec, image).codec(image), lc.from_reference("transtic", state)(image)
    assert torch.equal(ours["x_hat"], theirs["x_hat"]) and torch.equal(ours["y"], theirs["y"])
    coded = lc.encode(image[0], codec, lc.load_task("human"), method)
    assert lc.decode(coded.data, codec, adapter=adapter_file).shape == (3, SIZE, SIZE)


class Anything:
    """A class that a checkpoint must not instantiate."""


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("cls/1/checkpoint.pth.tar", b"")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "is not a file"),
        (lambda path: path.write_text("text"), "is not a checkpoint of tensors"),
        (lambda path: path.write_bytes(b""), "is not a checkpoint of tensors"),
        (lambda path: torch.save({"state_dict": Anything()}, path), "is not a checkpoint of tensors"),
        (lambda path: torch.save([torch.zeros(1)], path), "has no state dict"),
        (lambda path: torch.save({"state_dict": {}}, path), "has no state dict"),
        (lambda path: torch.save({"conv.weight": torch.zeros(1)}, path), "this is not a checkpoint of tic"),
        (archive, "such as cls/1/checkpoint.pth.tar"),
    ],
)
def test_other_files_raise_a_one_line_error(tmp_path, capsys, write, message):
    path = tmp_path / "a.pth.tar"
    write(path)
    assert cli.command(["import", str(path), "--system", "tic_svdlora", f"into={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.glob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "system must be given"),
        (["--system"], "--system needs a value"),
        (["--system", "tic", "size=3"], "import has no setting 'size'"),
        (["--system", "tic", "quality=5"], "quality must be 1, 2, 3 or 4, not 5"),
        (["--system", "stf", "quality=7"], "quality must be an integer from 1 to 6, not 7"),
        (["--system", "jpeg"], "available are tic"),
    ],
)
def test_wrong_arguments_raise_a_one_line_error(tmp_path, capsys, words, message):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth.tar")
    assert cli.command(["import", str(tmp_path / "a.pth.tar"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
