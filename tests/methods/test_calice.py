"""CALICE: one adapter for all rates of a frozen codec, and files that say theirs."""

import json
import math
import warnings

import pytest
import torch

import lora_comp as lc
from lora_comp import bitstream, cli
from lora_comp.codecs.tic_v import LAMBDAS
from lora_comp.data import write_image
from lora_comp.errors import LoraCompWarning
from lora_comp.methods import calice, frozen_quality, load_method
from lora_comp.methods.calice import CaliceOptions, Pretraining, Range
from lora_comp.methods.low_rank import LowRankLinear, with_adapter
from lora_comp.tasks.rate import rate_lambda
from lora_comp.training import adapter as adapter_training
from lora_comp.weights import write_weights

KINDS = ["codec", "fixed_rate_codec", "stf"]


def write_adapter(path, codec, seed=0, changes=None, **options):
    """An adapter from quality 1 to 6 with a visible effect, in a file as `lora-comp train` writes it."""
    pretraining = Pretraining(codec, CaliceOptions(**({"highest": 6} | options)))
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(p.shape, generator=rng) / 200 if name.endswith(".U") else p
        for name, p in pretraining.tensors().items()
    }
    card = {"codec": codec.name, "quality": codec.quality, "codec_hash": codec.hash.hex(), "method": "calice"}
    write_weights(path, tensors, card | pretraining.card | (changes or {}))
    return path


@pytest.fixture(params=KINDS)
def adapted(request, tmp_path):
    """Codecs with gains, of one rate point, and with channel slices, and the method with an adapter for each."""
    codec = request.getfixturevalue(request.param)
    return codec, load_method("calice", codec, adapter=str(write_adapter(tmp_path / "a.safetensors", codec)))


# rates


@pytest.mark.parametrize("ends", [(1, 6), (2, 4.5)])
@pytest.mark.parametrize("quality", [2, 2.5, 4.0625, 4.5])
def test_a_goes_with_lambda_as_published(ends, quality):
    low, high, own = (rate_lambda(LAMBDAS, q) for q in (*ends, quality))
    a = Range(ends).a(quality)
    assert math.exp((1 - a) * math.log(high) + a * math.log(low)) == pytest.approx(own)
    a = Range(ends, "linear").a(quality)
    assert (1 - a) * high + a * low == pytest.approx(own)


@pytest.mark.parametrize("interpolation", ["log", "linear"])
def test_the_ends_are_the_frozen_codec_and_the_whole_update(interpolation):
    assert [Range((1, 6), interpolation).a(q) for q in (1, 6)] == [1, 0]


def test_an_update_is_scaled_by_a_and_alpha(adapted):
    """The published layer is x W^T + a alpha (x A) B."""
    codec, method = adapted
    there = method.at(2.5)
    name = method.adapter.layers[0]
    a, b = method.adapter.tensors[f"{name}.V"], method.adapter.tensors[f"{name}.U"].T
    x, layer = torch.randn(7, len(a), generator=torch.Generator().manual_seed(0)), codec.get_submodule(name)
    twin = layer(x) + there.range.a(2.5) * 8 * (x @ a) @ b
    merged = there.prepare(codec, torch.zeros(1, 3, 64, 64)).codec.get_submodule(name)
    torch.testing.assert_close(merged(x), twin, rtol=1e-4, atol=1e-4)


def test_at_the_highest_quality_the_codec_is_the_frozen_one(adapted, make_image):
    codec, method = adapted
    made = method.prepare(codec, torch.zeros(1, 3, 64, 64)).codec
    assert method.target == 6
    assert all(torch.equal(p, q) for p, q in zip(made.parameters(), codec.parameters(), strict=True))


@pytest.mark.parametrize("quality", [1, 3.5])
def test_merged_equals_unmerged(adapted, make_image, quality):
    """Images within 1e-5, and y within 1e-5 of its largest value."""
    codec, method = adapted
    x, there = make_image(128, 192)[None], method.at(quality)
    unmerged, merged = with_adapter(codec, there.scaled()), there.prepare(codec, x).codec
    assert not any(isinstance(module, LowRankLinear) for module in merged.modules())
    with torch.no_grad():
        y_hat = codec.rate(codec.latents(x)).y_hat
        for ours, theirs, plain in [
            (merged.latents(x)["y"], unmerged.latents(x)["y"], codec.latents(x)["y"]),
            (merged.synthesize(y_hat), unmerged.synthesize(y_hat), codec.synthesize(y_hat)),
        ]:
            assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())
            assert (theirs - plain).abs().max() > 1e-2


def test_qualities_are_held_in_sixteenths(adapted):
    _, method = adapted
    assert [method.at(q).target for q in (1, 3.3, 6.0)] == [1, 3.3125, 6]
    for quality in (0.9, 6.1, float("nan")):
        with pytest.raises(lc.LoraCompError, match="quality must be a number from 1 to 6, not"):
            method.at(quality)


# files


def test_a_file_decodes_at_its_own_quality_to_what_the_encoder_saw(adapted, human, make_image, tmp_path):
    codec, method = adapted
    image, there = make_image(100, 130), method.at(2.5)
    coded = lc.encode(image, codec, human, there)
    info = lc.info(coded.data)
    assert (info["quality"], info["frozen_quality"], coded.quality) == (2.5, codec.quality, 2.5)
    assert (info["method"], info["adapter"], info["bytes_adapter"]) == ("calice", method.identity.hex(), 1)
    decoded = lc.decode(coded.data, codec, adapter=tmp_path / "a.safetensors")
    for any_rate in (method, there, method.at(1)):
        assert torch.equal(lc.decode(coded.data, codec, any_rate), decoded)
    mse = float(human.distortion(decoded[None], image[None]))
    assert coded.loss_after == pytest.approx(human.weight(2.5) * mse + coded.bpp, rel=1e-4)
    plain = lc.decode(lc.encode(image, codec, method="none").data, codec)
    assert (decoded - plain).abs().max() > 1e-3


def test_latents_are_refined_on_top_of_any_rate(adapted, human, make_image):
    codec, method = adapted
    plain, refined = (lc.encode(make_image(), codec, human, method.at(2), refine=steps) for steps in (0, 10))
    assert refined.quality == 2 and refined.loss_after < plain.loss_after


@pytest.mark.parametrize("refine", [0, 5])
def test_a_file_meets_a_size(adapted, human, make_image, refine):
    """The adapter is random, and sizes do not rise with quality as those of a trained one. What is not met is said."""
    codec, method = adapted
    image = make_image()
    sizes = [len(lc.encode(image, codec, human, method.at(quality)).data) for quality in (1, 3, 6)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", LoraCompWarning)
        coded = lc.encode(image, codec, human, method, bytes=sizes[1], refine=refine)
    assert said or len(coded.data) == pytest.approx(sizes[1], rel=0.02)
    assert torch.isfinite(lc.decode(coded.data, codec, method)).all()
    limited = lc.encode(image, codec, human, method, refine=refine, max_bytes=max(sizes) + 50)
    assert len(limited.data) <= max(sizes) + 50
    if refine == 0:
        assert coded.data == lc.encode(image, codec, human, method.at(coded.quality)).data
        assert limited.quality == 6


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        (None, "the file's payload is not a quality"),
        (b"", "the file's payload is not a quality"),
        (b"\x10\x10", "the file's payload is not a quality"),
        (b"\x0f", r"quality must be a number from 1 to 6, not 0\.9375"),
        (b"\xff", r"quality must be a number from 1 to 6, not 15\.9375"),
    ],
)
def test_a_file_without_a_quality_of_the_adapter_is_refused(
    fixed_rate_codec, human, make_image, tmp_path, payload, line
):
    path = write_adapter(tmp_path / "a.safetensors", fixed_rate_codec)
    method = load_method("calice", fixed_rate_codec, adapter=str(path))
    header, sections = bitstream.read(lc.encode(make_image(), fixed_rate_codec, human, method).data)
    data = bitstream.write(header, bitstream.Sections(sections.latents, payload, sections.hints))
    assert lc.info(data)["method"] == "calice"
    with pytest.raises(lc.BitstreamError, match=line):
        lc.decode(data, fixed_rate_codec, adapter=path)


# adapters


def test_adapters_of_other_weights_or_methods_are_refused(codec, tmp_path):
    for changes in ({"codec_hash": "00000000"}, {"codec": "tic"}, {"quality": 3}):
        path = write_adapter(tmp_path / "other.safetensors", codec, changes=changes)
        with pytest.raises(
            lc.LoraCompError, match="was trained for other weights than those loaded of tic-v quality 2"
        ):
            load_method("calice", codec, adapter=str(path))
    own = write_adapter(tmp_path / "a.safetensors", codec)
    alice = write_adapter(tmp_path / "b.safetensors", codec, changes={"method": "alice"})
    for name, path, other in (("alice", own, "calice"), ("calice", alice, "alice")):
        with pytest.raises(lc.LoraCompError, match=f"is an adapter of the method {other}, not of {name}"):
            load_method(name, codec, adapter=str(path))


@pytest.mark.parametrize(
    "changes", [{"qualities": None}, {"qualities": [4, 4]}, {"qualities": [1, math.inf]}, {"interpolation": "cubic"}]
)
def test_an_adapter_has_two_ends(codec, tmp_path, changes):
    path = write_adapter(tmp_path / "a.safetensors", codec, changes=changes)
    with pytest.raises(lc.LoraCompError, match="the adapter does not say between which qualities it is"):
        load_method("calice", codec, adapter=str(path))


def test_what_can_be_set_is_checked(codec, tmp_path):
    with pytest.raises(lc.LoraCompError, match=r"needs its adapter, as lora-comp train writes: method\.adapter=FILE"):
        load_method("calice", codec)
    path = str(write_adapter(tmp_path / "a.safetensors", codec))
    with pytest.raises(lc.LoraCompError, match=r"rank and lowest can be set in training, and .*a\.safetensors is"):
        load_method("calice", codec, adapter=path, rank=4, lowest=2)


def test_a_codec_of_variable_rate_is_moved_from_one_quality(codec, human, make_image, tmp_path):
    method = load_method("calice", codec, adapter=str(write_adapter(tmp_path / "a.safetensors", codec)))
    with pytest.raises(lc.LoraCompError, match=r"is for tic-v quality 2, not 3: .* give the method's at\(3\)"):
        lc.encode(make_image(), codec.at(3), human, method)


def test_the_card_says_which_codec_is_frozen(codec, tmp_path):
    path = str(write_adapter(tmp_path / "a.safetensors", codec))
    assert frozen_quality("tic-v", "calice", adapter=path, rank=8) == 2
    assert frozen_quality("stf", "calice", adapter=path) == 6  # another codec's: it is refused when it is loaded
    assert frozen_quality("tic-v", "alice", adapter=path) is frozen_quality("tic-v", "none") is None


# training


@pytest.mark.parametrize("kind", KINDS)
def test_in_training_every_image_has_its_own_rate(request, kind, make_image):
    codec = request.getfixturevalue(kind)
    pretraining = Pretraining(codec, CaliceOptions(highest=6))
    with torch.no_grad():
        for name, p in pretraining.trained.items():
            if name.endswith(".U"):
                p += torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) / 200
    module = pretraining.module.eval()
    images = torch.stack([make_image(64, 64), make_image(64, 64).flip(2), make_image(64, 64).flip(1)])
    qualities = torch.tensor([1.0, 3.5, 6.0])
    with torch.no_grad():
        together = module.at(qualities)(images)
        for i, quality in enumerate(qualities):
            alone = module.at(quality[None])(images[i : i + 1])
            torch.testing.assert_close(together["y"][i : i + 1], alone["y"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together["y"][2:], codec.latents(images[2:])["y"], atol=1e-4, rtol=1e-4)
        assert (together["y"][:1] - codec.latents(images[:1])["y"]).abs().max() > 1e-2


def test_gradients_of_a_batch_are_those_of_its_images(fixed_rate_codec, make_image):
    """U and V are shared, and gathered over the rates."""
    pretraining = Pretraining(fixed_rate_codec, CaliceOptions(highest=6))
    module, (u, *_) = pretraining.module.eval(), [p for n, p in pretraining.trained.items() if n.endswith(".U")]
    images, qualities = torch.stack([make_image(), make_image().flip(2)]), torch.tensor([1.0, 4.0])

    def gradient(which):
        return torch.autograd.grad(module.at(qualities[which]).latents(images[which])["y"].square().sum(), u)[0]

    u.requires_grad_()
    both, each = gradient([0, 1]), gradient([0]) + gradient([1])
    torch.testing.assert_close(both, each, rtol=1e-3, atol=1e-3 * float(each.abs().max()))


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, fixed_rate_codec, human, make_image):
    images = torch.stack([make_image(64, 64), make_image(64, 64).flip(2)])

    def train(work, stop_after=None):
        def batches(step):
            if step == stop_after:
                raise KeyboardInterrupt
            return images

        pretraining = Pretraining(fixed_rate_codec, CaliceOptions(highest=6))
        rates = calice.rates(CaliceOptions(), 6)
        return adapter_training.train(pretraining, rates, human, batches, tmp_path / work, lr=1e-3, steps=4)[0]

    straight = train("straight")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop_after=2)
    resumed = train("stopped")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    new = Pretraining(fixed_rate_codec, CaliceOptions(highest=6)).tensors()
    assert {n.rsplit(".", 1)[1] for n in new if not torch.equal(new[n], straight[n])} == {"U", "V"}


def test_the_ends_of_a_training():
    assert calice.rates(CaliceOptions(), 6) == (1, 3.5, 6)
    assert calice.rates(CaliceOptions(lowest=2, highest=5.5), 6) == (2, 3.75, 5.5)
    with pytest.raises(lc.LoraCompError, match=r"method\.lowest must be below the highest quality, 4, not 4"):
        calice.rates(CaliceOptions(lowest=4), 4)


# commands


@pytest.fixture
def words(fixed_rate_codec, tmp_path, make_image):
    """Of a command whose codec is tic, frozen at quality 2, with an adapter from 1 to 6."""
    write_weights(tmp_path / "tic.safetensors", dict(fixed_rate_codec.named_parameters()), {}, torch.float32)
    write_adapter(tmp_path / "a.safetensors", fixed_rate_codec)
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "a.png", make_image(64, 96))
    return ["codec=tic", f"codec.weights={tmp_path / 'tic.safetensors'}", "method=calice", "task=human"]


def test_encode_and_decode_by_commands(tmp_path, words, capsys):
    image, file, adapter = tmp_path / "images" / "a.png", tmp_path / "a.lcz", tmp_path / "a.safetensors"
    command = ["encode", str(image), str(file), *words, f"method.adapter={adapter}"]
    assert cli.command([*command, "quality=2.5"]) == 0
    assert lc.info(file)["quality"] == 2.5
    decode = ["decode", str(file), str(tmp_path / "b.png"), f"weights={tmp_path / 'tic.safetensors'}"]
    assert cli.command([*decode, f"adapter={adapter}"]) == 0
    assert cli.command([*command, f"bytes={lc.info(file)['bytes']}"]) == 0
    assert "calice" in capsys.readouterr().out
    assert cli.command([*command, "quality=7"]) == 2
    assert capsys.readouterr().err == "error: quality must be a number from 1 to 6, not 7\n"
    assert cli.command(["encode", str(image), str(file), *words, "method.adapter=/nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("rates", ["quality=[1,2,2.5]", "bpp=[2,1]"])
def test_a_run_has_a_row_for_each_rate(tmp_path, words, rates):
    """And a plain row where there are weights of that quality, here 2."""
    words = [*words, f"method.adapter={tmp_path / 'a.safetensors'}", rates]
    assert cli.command(["run", *words, "data=folder", f"data.path={tmp_path / 'images'}", f"out={tmp_path / 'o'}"]) == 0
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    rows = [(row["method"], row.get("target", row["quality"])) for row in results["summary"]]
    if rates.startswith("quality"):
        assert rows == [("none", 2), ("calice", 1), ("calice", 2), ("calice", 2.5)]
    else:
        assert sorted(rows) == [("calice", "bpp=1"), ("calice", "bpp=2")]
    for record in results["records"]:
        assert record["quality"] == lc.info(tmp_path / "o" / record["file"])["quality"]


def test_a_run_compares_with_a_codec_of_variable_rate(codec, tmp_path, make_image):
    write_weights(tmp_path / "v.safetensors", dict(codec.named_parameters()), {}, torch.float32)
    write_adapter(tmp_path / "a.safetensors", codec)
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "a.png", make_image())
    words = ["codec=tic-v", f"codec.weights={tmp_path / 'v.safetensors'}", "method=[calice,svd_lora]", "task=human"]
    words += [f"method.calice.adapter={tmp_path / 'a.safetensors'}", "engine.steps=1", "quality=[1,2.5]"]
    assert cli.command(["run", *words, "data=folder", f"data.path={tmp_path / 'images'}", f"out={tmp_path / 'o'}"]) == 0
    rows = json.loads((tmp_path / "o" / "results.json").read_text())["summary"]
    expected = [(method, quality) for method in ("none", "svd_lora", "calice") for quality in (1, 2.5)]
    assert [(row["method"], row["quality"]) for row in rows] == expected
