"""Training codecs and adapters: where they start, and that a stop costs nothing."""

import csv
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import lora_comp as lc
from lora_comp import api
from lora_comp.codecs import CODECS, build
from lora_comp.commands.train import initialise
from lora_comp.methods import alice, load_method
from lora_comp.train import main
from lora_comp.training import adapter as adapter_training
from lora_comp.training import codec as codec_training
from lora_comp.training import loop, soap
from lora_comp.training.crops import SCALES, Crops
from lora_comp.weights import read_weights, write_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with pieces of a photograph."""
    path = tmp_path_factory.mktemp("images")
    image = lc.load_data("photos", limit=1)[0].image
    for i in range(4):
        piece = (image[:, 64 * i : 64 * i + 192, :192].permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(np.ascontiguousarray(piece)).save(path / f"{i}.png")
    return path


ALL = CODECS["tic-v"].qualities
KINDS = pytest.mark.parametrize(("name", "qualities"), [("tic", (4,)), ("tic-v", ALL)])


@pytest.mark.parametrize("name", ["tic", "tic-v", "stf-s"])
def test_a_codec_starts_as_a_linear_codec_not_at_noise(folder, name):
    data = Crops([folder], size=128)
    codec = build(name, 4)
    initialise(codec, data.batch(16, seed=0), 0.013)
    x = data.held_out(1)
    with torch.no_grad():
        mse = (codec.eval()(x)["x_hat"] - x).square().mean()
    assert mse < 0.005  # above 23 dB; random weights give 6 dB


@KINDS
def test_a_stopped_training_goes_on_to_the_same_weights(folder, tmp_path, monkeypatch, name, qualities):
    """In either part of it: the last two steps train the synthesis transform alone."""
    monkeypatch.setattr(codec_training, "ALONE", 0.5)
    monkeypatch.setattr(soap, "EVERY", 2)
    data = Crops([folder], 64, SCALES)

    def train(work, stop_after=None):
        codec = build(name)
        if stop_after is not None:
            batch = data.batch
            data.batch = lambda count, seed, share: (
                (_ for _ in ()).throw(KeyboardInterrupt) if seed == stop_after else batch(count, seed, share)
            )
            with pytest.raises(KeyboardInterrupt):
                codec_training.train(codec, tmp_path / work, data, qualities, batch=2, lr=1e-3, steps=4)
            data.batch = batch
            codec = build(name, seed=1)  # another process
        codec_training.train(codec, tmp_path / work, data, qualities, batch=2, lr=1e-3, steps=4)
        return codec.state_dict() | torch.load(tmp_path / work / "checkpoint.pt")["codec"]

    straight = train("straight")
    for stop in (1, 3):
        resumed = train(f"stopped at {stop}", stop)
        assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_the_checkpoint_of_another_training_is_refused(folder, tmp_path):
    data = Crops([folder], 64)
    codec_training.train(build("tic"), tmp_path, data, (4,), batch=2, lr=1e-3, steps=1)
    with pytest.raises(lc.LoraCompError, match=r"checkpoint\.pt is that of another training") as error:
        codec_training.train(build("tic-v"), tmp_path, data, ALL, batch=2, lr=1e-3, steps=1)
    assert "\n" not in str(error.value)


def test_a_training_on_a_gpu_does_not_go_on_with_the_optimiser_of_a_cpu(folder, tmp_path):
    data = Crops([folder], 64)
    codec_training.train(build("tic"), tmp_path, data, (4,), batch=2, lr=1e-3, steps=1)
    stored = torch.load(tmp_path / "checkpoint.pt")
    torch.save(stored | {"adam": stored.pop("soap")}, tmp_path / "checkpoint.pt")
    with pytest.raises(lc.LoraCompError, match=r"checkpoint\.pt is that of another training"):
        codec_training.train(build("tic"), tmp_path, data, (4,), batch=2, lr=1e-3, steps=1)


@KINDS
def test_the_last_steps_train_the_synthesis_alone(folder, tmp_path, monkeypatch, name, qualities):
    monkeypatch.setattr(codec_training, "ALONE", 0.0)
    monkeypatch.setattr(loop, "cosine", lambda progress: 1.0)
    codec, before = build(name), build(name).state_dict()
    codec_training.train(codec, tmp_path, Crops([folder], 64), qualities, batch=2, lr=1e-3, steps=2)
    changed = {key.split(".")[0] for key, value in codec.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == ({"g_s", "log_inverse"} if name == "tic-v" else {"g_s"})


def test_a_step_that_would_leave_no_number_is_not_taken(folder, tmp_path, monkeypatch):
    codec = build("tic-v")
    before = codec.state_dict()
    monkeypatch.setattr(codec_training, "weight", lambda quality: float("nan"))
    codec_training.train(codec, tmp_path, Crops([folder], 64), ALL, batch=2, lr=1e-3, steps=2)
    after = codec.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if not key.endswith("quantiles"))


def test_a_training_at_all_rates_reports_each(folder, tmp_path):
    row = codec_training.train(build("tic-v"), tmp_path, Crops([folder], 64), ALL, batch=3, lr=1e-3, steps=1)
    assert {f"val_{what}_q{quality}" for what in ("bpp", "psnr") for quality in ALL} < set(row)


def test_a_stop_leaves_no_trace_in_the_curve(folder, tmp_path, monkeypatch):
    """Killed while the checkpoint of step 4 is written, it goes on from that of step 3."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)  # a line at every step
    data, save = Crops([folder], size=64), loop.save_atomically

    class Killed(BaseException):
        pass

    def save_until_killed(path, content):
        if content["steps"] == 4:
            raise Killed
        save(path, content)

    def train(name):
        codec_training.train(build("tic-v"), tmp_path / name, data, ALL, batch=2, lr=1e-3, steps=6)

    def curve(name):
        with open(tmp_path / name / "curve.csv", newline="") as file:
            return [{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)]

    train("straight")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "save_atomically", save_until_killed)
        train("resumed")
    assert [row["steps"] for row in curve("resumed")] == ["1", "2", "3"]
    train("resumed")
    assert curve("resumed") == curve("straight")
    assert [row["steps"] for row in curve("straight")] == list("123456")


def test_a_budget_is_in_steps_or_in_minutes(tmp_path):
    with pytest.raises(ValueError, match="steps or in minutes"):
        loop.fit(tmp_path, {}, lambda i, progress: {}, steps=3, minutes=1)


def test_a_trained_adapter_serves_encoder_and_decoder(tmp_path, folder):
    """From the command: the weights it writes are found again by their path, and by the file that they coded."""
    words = [
        "what=adapter",
        "task.network=torchvision/resnet18",
        "task.weights=null",
        "steps=2",
        "batch=1",
        f"images=[{folder}]",
        f"work={tmp_path / 'work'}",
        f"into={tmp_path}",
        "threads=1",
    ]
    assert main(words) == 0
    (path,) = tmp_path.glob("*.safetensors")
    codec = lc.load_codec("tic-v", 2)
    image = lc.load_data("photos", limit=1)[0].image[:, :64, :64]
    method = load_method("svd_lora", codec, adapter=path)
    assert any(method.adapter.tensors[name].any() for name in method.adapter.tensors if name.endswith(".S"))
    adapted = method.prepare(codec, image[None])
    (data,) = api.write(codec, adapted.latents(image[None]), (64, 64), method, adapted)
    torch.testing.assert_close(lc.decode(data, adapter=path), lc.decode(data, codec, method))
    with pytest.raises(lc.BitstreamError, match="needs the adapter"):
        lc.decode(data)


def test_one_adapter_serves_all_rates_of_a_codec_that_has_them(tmp_path, folder):
    words = ["what=adapter", "codec=tic-v", "codec.weights=null", "task=human", "steps=2", "batch=2", "threads=1"]
    assert main([*words, f"images=[{folder}]", f"work={tmp_path / 'work'}", f"into={tmp_path}"]) == 0
    path = tmp_path / "tic-v-svd_lora-human.safetensors"
    assert read_weights(path, "the adapter")[1]["quality"] is None
    for quality in (1, 4.5):
        codec = lc.load_codec("tic-v", quality, weights=None)
        method = load_method("svd_lora", codec, adapter=path)
        assert any(tensor.any() for name, tensor in method.adapter.tensors.items() if name.endswith(".S"))


def test_an_adapter_is_trained_on_from_another(tmp_path, folder):
    words = ["what=adapter", "codec.weights=null", "task=human", "batch=1", "threads=1", f"images=[{folder}]"]
    first = tmp_path / "tic-v-svd_lora-human.safetensors"
    assert main([*words, "steps=2", "method.rank=2", f"work={tmp_path / '1'}", f"into={tmp_path}"]) == 0
    on = ["steps=1", "lr=1e-9", f"method.adapter={first}", f"work={tmp_path / '2'}", f"into={tmp_path / 'on'}"]
    assert main([*words, *on]) == 0
    (before, card), (after, of_after) = (read_weights(p, "the adapter") for p in (first, tmp_path / "on" / first.name))
    assert (card["rank"], card["alpha"]) == (of_after["rank"], of_after["alpha"]) == (2, 8)
    assert of_after["steps"] == card["steps"] + 1 and of_after["minutes"] >= card["minutes"]
    assert before.keys() == after.keys() and any(before[name].any() for name in before if name.endswith(".S"))
    for name in before:
        torch.testing.assert_close(after[name], before[name])


def test_an_adapter_of_alice_is_trained_for_the_rate_of_its_target(tmp_path, folder):
    """On a codec that is frozen at its highest quality, also one of variable rate."""
    words = ["what=adapter", "method=alice", "method.rank=2", "method.target=2.5", "task=human", "steps=2", "batch=1"]
    words += ["codec=tic-v", "codec.weights=null", "threads=1", f"images=[{folder}]", f"work={tmp_path / 'work'}"]
    assert main([*words, f"into={tmp_path}"]) == 0
    path = tmp_path / "tic-v-q6-alice-human-q2.5.safetensors"
    card = read_weights(path, "the adapter")[1]
    assert (card["quality"], card["target"], card["method"], card["rank"]) == (6, 2.5, "alice", 2)
    codec = lc.load_codec("tic-v", 6, weights=None)
    method = load_method("alice", codec, adapter=str(path))
    assert method.target == 2.5
    assert any(tensor.any() for name, tensor in method.adapter.tensors.items() if name.endswith(".U"))
    image = lc.load_data("photos", limit=1)[0].image[:, :64, :64]
    coded = lc.encode(image, codec, lc.load_task("human"), method)
    assert torch.equal(lc.decode(coded.data, codec, adapter=path), lc.decode(coded.data, codec, method))


@pytest.mark.parametrize("target", [1, 3])
def test_the_loss_of_an_adapter_is_that_of_its_target(folder, tmp_path, codec, human, target):
    """Whatever quality the codec is of."""
    data = Crops([folder], 64)
    row = adapter_training.train(
        alice.Pretraining(codec, alice.AliceOptions(target=target)),
        (target,),
        human,
        lambda step: data.batch(2, step),
        tmp_path,
        lr=1e-3,
        steps=1,
    )[1]
    assert row["loss"] == pytest.approx(human.weight(target) * row["distortion"] + row["bpp"], rel=1e-3)


@pytest.mark.parametrize("vanilla", [False, True])
def test_a_stopped_training_of_an_adapter_goes_on_to_the_same_weights(folder, tmp_path, codec, human, vanilla):
    data = Crops([folder], 64)

    def train(work, stop_after=None):
        def batches(step):
            if step == stop_after:
                raise KeyboardInterrupt
            return data.batch(2, step)

        pretraining = alice.Pretraining(codec, alice.AliceOptions(target=1, vanilla=vanilla))
        return adapter_training.train(pretraining, (1,), human, batches, tmp_path / work, lr=1e-3, steps=4)[0]

    straight = train("straight")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop_after=2)
    resumed = train("stopped")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    new = alice.Pretraining(codec, alice.AliceOptions(target=1, vanilla=vanilla)).tensors()
    changed = {name.rsplit(".", 1)[1] for name in new if not torch.equal(new[name], straight[name])}
    assert changed == ({"weight", "bias"} if vanilla else {"U", "V"})


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_plateau_of_the_loss_goes_on_where_it_stopped(folder, tmp_path, codec, human, monkeypatch, optimizer):
    """The learning rate falls when the loss of images held out does not: here from one at which it grows."""
    monkeypatch.setattr(adapter_training, "PLATEAU_STEPS", 1)
    monkeypatch.setattr(adapter_training, "use_bf16", lambda device: False)  # in which it may fall for longer
    data = Crops([folder], 64)

    def train(work, stop_after=None, optimizer=optimizer):
        def batches(step):
            if step == stop_after:
                raise KeyboardInterrupt
            return data.batch(1, step)

        new = alice.Pretraining(codec, alice.AliceOptions(target=1, encoder=[False] * 3))
        kinds = {"optimizer": optimizer, "held_out": data.held_out(1)}
        return adapter_training.train(new, (1,), human, batches, tmp_path / work, lr=1.0, steps=8, **kinds)[0]

    straight = train("straight")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop_after=4)
    resumed = train("stopped")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    stored = torch.load(tmp_path / "straight" / "checkpoint.pt")["optimizer" if optimizer == "adam" else "sgd"]
    assert stored["param_groups"][0]["lr"] == pytest.approx(0.3)
    with pytest.raises(lc.LoraCompError, match="is that of another training"):
        train("straight", optimizer="sgd" if optimizer == "adam" else "adam")


def test_a_codec_goes_on_from_a_file_of_weights(tmp_path, monkeypatch):
    """And what it writes loads as a codec, with a card that says what it reaches at each rate."""
    image = lc.load_data("photos", limit=1)[0].image[:, :256, :256]
    photo = Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy())
    for i in range(2):
        photo.save(tmp_path / f"{i}.png")
    begun = build("tic-v", seed=7)
    write_weights(tmp_path / "begun.safetensors", dict(begun.named_parameters()), {})
    words = ["what=codec", "codec=tic-v", f"codec.weights={tmp_path / 'begun.safetensors'}", "steps=1", "batch=2"]
    assert main([*words, f"images=[{tmp_path}]", "lr=1e-9", f"work={tmp_path}", f"into={tmp_path / 'out'}"]) == 0
    path = tmp_path / "out" / "tic-v.safetensors"
    codec = lc.load_codec("tic-v", 2.5, path)
    torch.testing.assert_close(codec.g_a[0].weight, begun.g_a[0].weight.detach().half().float())
    card = read_weights(path, "the codec")[1]
    assert (card["quality"], card["crops"], len(card["lambdas"]), len(card["val"])) == (None, 2, 6, 6)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["what=codec", "minutes=1"], "a codec needs images"),
        (["what=codec", "steps=1", "minutes=1"], "give a budget"),
        (["what=codec", "steps=1", "schedule=plateau"], "optimizer= and schedule= are of what=adapter"),
        (["what=car"], "what must be codec, adapter or network, not 'car'"),
        (["what=codec", "steps=0"], "steps must be an integer >= 1 or null, not 0"),
        (["what=adapter", "steps=1", "method=none"], "method=none has no adapter to train; known are svd_lora, lora"),
        (["what=codec", "steps=1", "images=[/nowhere]", "into=."], "/nowhere is not a folder"),
        (["what=codec", "steps=1", "images=[tests]", "into=."], "at least two images of 256x256"),
        (
            ["what=codec", "codec=tic", "steps=1", "images=[tests]", "quality=[5]"],
            "quality must be 1, 2, 3 or 4, not 5",
        ),
        (
            ["what=codec", "codec=tic-v", "steps=1", "images=[tests]", "quality=[4]"],
            "tic-v is trained at all rates together: leave quality= out",
        ),
        (["what=adapter", "codec=tic-v", "steps=1", "quality=[4]"], "tic-v is trained at all rates together"),
        (
            ["what=codec", "codec=tic-v", "codec.weights=/nowhere", "steps=1", "images=[tests]", "into=."],
            "there are no weights for codec tic-v: /nowhere is missing",
        ),
        (["what=adapter", "steps=1", "images=[/nowhere]", "into=."], "/nowhere is not a folder"),
        (
            ["what=adapter", "method=alice", "method.adapter=a", "method.target=3", "steps=1", "into=."],
            "starts anew, and not from a",
        ),
        (["what=adapter", "method=calice", "method.adapter=a", "steps=1", "into=."], "starts anew, and not from a"),
        (["what=adapter", "method=transtic", "method.adapter=a", "steps=1", "into=."], "starts anew, and not from a"),
        (["what=adapter", "method=alice", "steps=1", "into=."], "is trained for a rate: method.target=3"),
        (["what=adapter", "method=calice", "method.lowest=6", "steps=1"], "method.lowest must be below the highest"),
        (["what=adapter", "method=alice", "method.target=7", "steps=1"], "method.target must be a number from 1 to 6"),
        (
            ["what=adapter", "codec=tic", "method=alice", "method.target=3", "quality=[5]", "steps=1"],
            "quality must be 1, 2, 3 or 4",
        ),
        (
            ["what=network", "network=flowers", "steps=1", "images=[/nowhere]", "into=."],
            "one folder with train/ and val/",
        ),
        (["what=network", "network=flowers", "steps=1", "images=[tests]", "into=."], "one folder with train/ and val/"),
        (["what=network", "network=scenes", "steps=1"], "scenes ships in the package: into=FOLDER writes beside it"),
        (["what=codec", "steps=1", "images=[tests]"], "tic-v ships in the package"),
        (["what=adapter", "steps=1"], "tic-v-svd_lora-cls-scenes ships in the package"),
    ],
)
def test_a_training_that_cannot_start_says_why(capsys, words, line):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_a_codec_is_not_trained_without_its_optimiser(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    assert main(["what=codec", "steps=1", "images=[tests]", "into=."]) == 2
    line = "error: training a codec needs pytorch_optimizer: pip install 'lora_comp[train]'\n"
    assert capsys.readouterr().err == line


def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    loop.fit(tmp_path, {}, lambda i, progress: {"loss": 1.0}, steps=2)
    assert [line for line in capsys.readouterr().out.splitlines() if "TensorBoard" in line] == [
        "curves go to curve.csv; for TensorBoard: pip install 'lora_comp[train]'"
    ]


def test_tensorboard_has_the_value_of_every_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop.fit(tmp_path, {}, lambda i, progress: {"loss": 10.0 - i}, steps=3)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 10.0), (2, 9.0), (3, 8.0)]
