"""open: any network as a task. How networks are read and their layers found is tested in tests/networks."""

import pytest
import torch
from torch import nn

import lora_comp as lc
from lora_comp import cli
from lora_comp.data import Sample, write_image
from lora_comp.errors import LoraCompError
from lora_comp.tasks import load_task


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A TorchScript file of a small network that takes images of any size from 24x24 on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 4, 2))
    path = tmp_path_factory.mktemp("script") / "seen.pt"
    torch.jit.save(torch.jit.trace(net.eval(), torch.rand(1, 3, 64, 64)), path)
    return path


def test_adapting_to_a_network_never_seen_lowers_its_objective(script, codec, make_image):
    task, image = load_task("open", network=script), make_image(64, 128)
    coded = lc.encode(image, codec, task, steps=5)
    assert coded.method == "svd_lora"
    assert coded.loss_after < 0.95 * coded.loss_before


def test_the_score_is_the_share_of_variance_that_is_kept(script, make_image):
    task, image = load_task("open", network=script), make_image()
    same = task.measure(image, Sample("a", image))
    assert same["score"] == same["feature_fidelity"] == pytest.approx(1)
    assert same["feature_distance"] == pytest.approx(0, abs=1e-6)
    noise = torch.randn_like(image)
    scores = [task.measure(image + strength * noise, Sample("a", image))["score"] for strength in (0.02, 0.1, 0.5)]
    assert 0.9 < scores[0] > scores[1] > scores[2] >= 0


def test_a_network_that_gives_logits_tells_whether_its_answer_stays(tmp_path):
    net = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        net[2].weight[0], net[2].weight[1], net[2].bias[:] = 1, -1, torch.tensor([-1.5, 1.5])
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 32, 32)), tmp_path / "bright.ts")
    task = load_task("open", network=tmp_path / "bright.ts", input={"size": 32})
    bright, dark = torch.full((3, 40, 40), 0.9), torch.full((3, 40, 40), 0.1)
    assert (task.answer(bright), task.answer(dark)) == ("class 0", "class 1")
    assert task.measure(bright * 0.9, Sample("a", bright))["agreement"] == 1
    assert task.measure(dark, Sample("a", bright))["agreement"] == 0


def test_the_command_takes_a_network_and_how_it_wants_images(script, tmp_path, weights, make_image, capsys):
    write_image(tmp_path / "street.png", make_image(40, 60))
    (tmp_path / "input.yaml").write_text("size: [48, 48]\nchannels: bgr\n")
    layer = load_task("open", network=script).network.layers[0]
    for words in (
        [f"task.layers=[{layer}]"],
        ["task.input.size=[32,32]", "task.input.channels=bgr"],
        [f"task.input={tmp_path / 'input.yaml'}"],
    ):
        said = cli.command(
            [
                "encode",
                str(tmp_path / "street.png"),
                str(tmp_path / "street.lcz"),
                "task=open",
                f"task.network={script}",
                f"codec.weights={weights}",
                "engine.steps=1",
                *words,
            ]
        )
        assert said == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "task.network must be given: an ONNX"),
        (["task.network=missing.onnx"], "there is no file missing.onnx"),
        (["task.network=SCRIPT", "task.layers=relu_3"], "the layer 'relu_3'"),
        (["task.network=SCRIPT", "task.layers=[nose]"], "the layer 'nose'"),
        (["task.network=SCRIPT", "task.input.sise=3"], "sise"),
        (["task.network=SCRIPT", "task.input=7"], "cannot read 7"),
        (["task.network=SCRIPT", "task.input.channels=yuv"], "task.input.channels must be rgb, bgr or null, not 'yuv'"),
        (["task.network=SCRIPT", "task.weights=w.pth"], "holds its weights"),
        (["task.network=SCRIPT", "task.input.size=[16,64]"], "does not run on an image of 16x64"),
    ],
)
def test_a_mistake_is_told_in_one_line(script, tmp_path, weights, make_image, capsys, words, says):
    write_image(tmp_path / "small.png", make_image(16, 64))
    words = [word.replace("SCRIPT", str(script)) for word in words]
    assert (
        cli.command(
            [
                "encode",
                str(tmp_path / "small.png"),
                str(tmp_path / "small.lcz"),
                "task=open",
                f"codec.weights={weights}",
                *words,
            ]
        )
        == 2
    )
    line = capsys.readouterr().err
    assert says in line and line.count("\n") == 1


def test_a_task_without_a_network_is_told():
    with pytest.raises(LoraCompError, match="needs a network"):
        load_task("open")


def logits(weights, path):
    """A TorchScript file of a network that weighs the mean of each channel."""
    net = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(2), nn.Conv1d(3, 2, 1))
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor(weights)[None, :, None].expand(2, 3, 1))
    torch.jit.save(torch.jit.trace(net.eval(), torch.zeros(1, 3, 32, 32)), path)
    return str(path)


@pytest.fixture
def pipeline(tmp_path):
    """Two networks: one sees red alone, the other blue alone."""
    return [logits(w, tmp_path / f"{name}.pt") for name, w in (("red", [1.0, 0, 0]), ("blue", [0, 0, 1.0]))]


def distance(task, decoded, original):
    return float(task.distortion(decoded, task.targets(original)))


def test_several_networks_are_one_task_by_their_shares(pipeline, make_image):
    image = make_image(32, 32)[None]
    less_red = image * torch.tensor([0.5, 1, 1]).view(3, 1, 1)
    alone = [load_task("open", network=network) for network in pipeline]
    both = load_task("open", network=pipeline, shares=[3, 1])
    assert list(both.parts) == ["red", "blue"]
    red, blue = (distance(task, less_red, image) for task in alone)
    assert red > blue > 0
    assert distance(both, less_red, image) == pytest.approx(0.75 * red + 0.25 * blue, rel=1e-4)
    measured = both.measure(less_red[0], Sample("a", image[0]))
    assert measured["score"] == measured["red_feature_fidelity"] < measured["blue_feature_fidelity"]


def test_each_of_several_networks_gets_its_own_input(pipeline, tmp_path):
    (tmp_path / "bgr.yaml").write_text("channels: bgr\nsize: [32, 32]\n")
    (tmp_path / "rgb.yaml").write_text("size: [64, 64]\n")
    task = load_task("open", network=pipeline, input=[str(tmp_path / "bgr.yaml"), str(tmp_path / "rgb.yaml")])
    wanted = [part.network.prepare.wanted for part in task.parts.values()]
    assert [(one.channels, one.size) for one in wanted] == [("bgr", (32, 32)), ("rgb", (64, 64))]
    same = load_task("open", network=pipeline, input={"size": 48})
    assert [part.network.prepare.wanted.size for part in same.parts.values()] == [(48, 48)] * 2


def test_networks_of_one_name_stay_apart(pipeline, tmp_path):
    (tmp_path / "other").mkdir()
    twin = logits([0, 1.0, 0], tmp_path / "other" / "red.pt")
    assert list(load_task("open", network=[pipeline[0], twin]).parts) == ["red", "red2"]
    assert load_task("open", network=[pipeline[0]]).name == "open"


@pytest.mark.parametrize(
    "words, says",
    [
        (["task.input=[a.yaml]"], "task.input must name 2 files, one for each network, not 1"),
        (["task.layers=[0]"], "leave it out where task.network names several"),
        (["task.shares=[1]"], "task.shares must be a number from 0 on for each of red, blue"),
        (["task.shares=[0,0]"], "not all 0"),
    ],
)
def test_what_does_not_fit_several_networks_is_one_line(pipeline, tmp_path, make_image, capsys, words, says):
    write_image(tmp_path / "a.png", make_image(40, 60))
    files = [str(tmp_path / "a.png"), str(tmp_path / "a.lcz")]
    assert cli.command(["encode", *files, "task=open", f"task.network=[{','.join(pipeline)}]", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1


def test_the_command_takes_a_pipeline(pipeline, tmp_path, weights, make_image, capsys):
    write_image(tmp_path / "a.png", make_image(40, 60))
    (tmp_path / "i.yaml").write_text("size: [32, 32]\n")
    files = [str(tmp_path / "a.png"), str(tmp_path / "a.lcz")]
    inputs = [f"task.input=[{tmp_path / 'i.yaml'},{tmp_path / 'i.yaml'}]", "task.shares=[2,1]"]
    words = ["task=open", f"task.network=[{','.join(pipeline)}]", f"codec.weights={weights}", "engine.steps=1"]
    assert cli.command(["encode", *files, *words, *inputs]) == 0, capsys.readouterr().err
