"""Test-time fine-tuning on top of an adapter of another method, in one file."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

import lora_comp as lc
from lora_comp import bitstream, cli
from lora_comp.data import write_image
from lora_comp.methods import METHODS, Stacked, frozen_quality, load_method
from lora_comp.methods.low_rank import LowRankLinear
from lora_comp.weights import write_weights

BASES = {"alice": {"target": 1}, "calice": {"highest": 6}, "transtic": {"width": 4}}


def write_base(path, codec, name, seed=0):
    """An adapter of a method with a visible effect, in a file as `lora-comp train` writes it."""
    pretraining = METHODS[name].pretrain(codec, dataclasses.replace(METHODS[name].options, **BASES[name]))
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        key: torch.randn(value.shape, generator=rng) / 200 if key.endswith(".U") else value * (1 + seed)
        for key, value in pretraining.tensors().items()
    }
    quality = codec.rate_point if name == "transtic" else codec.quality
    card = {"codec": codec.name, "quality": quality, "codec_hash": codec.hash.hex(), "method": name}
    write_weights(path, tensors, card | pretraining.card)
    return str(path)


@pytest.fixture(params=["codec", "fixed_rate_codec", "stf"])
def frozen(request):
    """Codecs with gains, of one rate point, and with channel slices."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=BASES)
def base(request):
    return request.param


@pytest.fixture
def path(codec, base, tmp_path):
    return write_base(tmp_path / "base.safetensors", codec, base)


def coded_on(codec, task, image, path, name="svd_lora", **options):
    method = load_method(name, codec, base=path, **options)
    return lc.encode(image, codec, task, method, steps=3), method


def test_the_objective_falls_below_that_of_the_base_alone(frozen, base, human, make_image, tmp_path):
    image, path = make_image(100, 130), write_base(tmp_path / "base.safetensors", frozen, base)
    coded, method = coded_on(frozen, human, image, path)
    alone = lc.encode(image, frozen, human, method.base)
    assert coded.loss_before == alone.loss_after
    assert (coded.method, coded.loss_after < coded.loss_before) == ("svd_lora", True)
    decoded = lc.decode(coded.data, frozen, method)
    weight = human.weight(frozen.quality if method.target is None else method.target)
    mse = float(human.distortion(decoded[None], image[None]))
    assert coded.loss_after == pytest.approx(weight * mse + coded.bpp, rel=1e-4)


def test_a_file_names_both_adapters_and_decodes_with_them_anywhere(
    codec, weights, base, path, human, make_image, tmp_path
):
    coded, method = coded_on(codec, human, make_image(70, 90), path)
    info = lc.info(coded.data)
    assert (info["method"], info["adapter"]) == ("svd_lora", method.identity.hex())
    assert (info["base"], info["base_adapter"]) == (base, method.base.identity.hex())
    (tmp_path / "cat.lcz").write_bytes(coded.data)
    program = (
        "import sys, torch, lora_comp as lc; codec = lc.load_codec('tic-v', 2, sys.argv[1]);"
        "torch.save(lc.decode(sys.argv[2], codec, base=sys.argv[3]), sys.argv[4])"
    )
    words = [weights, tmp_path / "cat.lcz", path, tmp_path / "decoded.pt"]
    subprocess.run([sys.executable, "-c", program, *map(str, words)], check=True)
    assert torch.equal(torch.load(tmp_path / "decoded.pt"), lc.decode(coded.data, codec, method))


@pytest.mark.parametrize("recipe", ["adapter", "published"])
def test_the_encoder_has_low_rank_layers_over_the_base(frozen, base, human, make_image, tmp_path, recipe):
    """In blocks with prompts, too, where the same layers make keys and values of the prompts of every image."""
    method = load_method("svd_lora", frozen, base=write_base(tmp_path / "base.safetensors", frozen, base), mlp=True)
    images = torch.stack([make_image(), make_image(128, 128)[:, :64, :64]])
    together = lc.encode_batch(images, frozen, human, method, steps=1, recipe=recipe)
    made = method.prepare(frozen, images, lc.methods.FitSettings(recipe=recipe)).codec
    for image, coded in zip(images, together, strict=True):
        alone = lc.encode(image, frozen, human, method, steps=1, recipe=recipe)
        assert coded.loss_after == pytest.approx(alone.loss_after, rel=1e-2)
    for side in (made.g_a, made.g_s):
        assert sum(isinstance(module, LowRankLinear) for module in side.modules()) >= 20


def test_an_adapter_of_its_own_is_named_by_its_seed(codec, path, human, make_image):
    coded, method = coded_on(codec, human, make_image(), path, seed=7, rank=2)
    assert lc.info(coded.data)["adapter"] == method.identity.hex() == "0002080e"
    assert torch.equal(lc.decode(coded.data, codec, base=path), lc.decode(coded.data, codec, method))


def test_a_trained_adapter_may_stand_on_a_base_but_is_asked_for(trained_codec, tmp_path):
    """Those of the package are for the plain codec."""
    path = write_base(tmp_path / "base.safetensors", trained_codec, "transtic")
    seeded, trained = (
        load_method("svd_lora", trained_codec, "cls-scenes", base=path, **given)
        for given in ({}, {"adapter": "cls-scenes"})
    )
    assert seeded.identity == load_method("svd_lora", trained_codec, adapter=None).identity
    assert trained.identity == load_method("svd_lora", trained_codec, "cls-scenes").identity


def test_a_file_without_its_base_says_which_it_needs(codec, base, path, human, make_image, tmp_path):
    data = coded_on(codec, human, make_image(), path)[0].data
    with pytest.raises(
        lc.BitstreamError, match=rf"the adapter {lc.info(data)['base_adapter']} of {base}, .*base=PATH$"
    ):
        lc.decode(data, codec)
    other = write_base(tmp_path / "other.safetensors", codec, base, seed=1)
    with pytest.raises(lc.BitstreamError, match=r"was encoded with the adapter .*, and .*other\.safetensors is"):
        lc.decode(data, codec, base=other)
    wrong = write_base(tmp_path / "wrong.safetensors", codec, "alice" if base != "alice" else "calice")
    with pytest.raises(lc.LoraCompError, match=f"is an adapter of the method .*, not of {base}"):
        lc.decode(data, codec, base=wrong)
    assert lc.decode(data, codec, method="none").shape == (3, 64, 64)


def test_a_method_with_another_base_decodes_by_the_names_in_the_file(codec, path, human, make_image, tmp_path):
    data = coded_on(codec, human, make_image(), path)[0].data
    other = load_method("svd_lora", codec, base=write_base(tmp_path / "o.safetensors", codec, "alice", seed=1))
    for method in (other, load_method("svd_lora", codec)):
        assert torch.equal(lc.decode(data, codec, method, base=path), lc.decode(data, codec, base=path))


def test_where_fine_tuning_does_harm_the_file_of_the_base_is_written(codec, base, path, human, make_image):
    """It decodes with the same method, and with the same base=."""
    image, method = make_image(), load_method("lora", codec, base=path)
    if base == "transtic":
        method.base.guarded = False
    alone = lc.encode(image, codec, human, method.base)
    coded = lc.encode(image, codec, human, method, steps=0)  # the update is zero, and takes some bytes
    assert (coded.method, coded.data) == (base, alone.data)
    assert coded.loss_before == coded.loss_after
    assert torch.equal(lc.decode(coded.data, codec, method), lc.decode(coded.data, codec, base=path))


@pytest.mark.parametrize("refine", [0, 3])
def test_any_rate_of_calice_has_fine_tuned_files(fixed_rate_codec, human, make_image, tmp_path, refine):
    codec, image = fixed_rate_codec, make_image()
    path = write_base(tmp_path / "base.safetensors", codec, "calice")
    method = load_method("svd_lora", codec, base=path)
    coded = lc.encode(image, codec, human, method.at(2.5), steps=2, refine=refine)
    info = lc.info(coded.data)
    assert (coded.quality, info["quality"], info["frozen_quality"]) == (2.5, 2.5, 2)
    assert torch.equal(lc.decode(coded.data, codec, method), lc.decode(coded.data, codec, base=path))
    limited = lc.encode(image, codec, human, method, steps=1, refine=refine, max_bytes=len(coded.data) + 2000)
    assert len(limited.data) <= len(coded.data) + 2000
    assert frozen_quality("tic", "svd_lora", base=path) == 2


@pytest.mark.parametrize("payload", [None, b"", b"\x01", b"\x02\x10"])
def test_a_payload_without_that_of_the_base_is_refused(codec, human, make_image, tmp_path, payload):
    path = write_base(tmp_path / "base.safetensors", codec, "calice")
    header, sections = bitstream.read(coded_on(codec, human, make_image(), path)[0].data)
    data = bitstream.write(header, bitstream.Sections(sections.latents, payload, sections.hints))
    for read in (lc.info, lambda data: lc.decode(data, codec, base=path)):
        with pytest.raises(lc.BitstreamError, match="the file's payload does not have that of its base"):
            read(data)


def test_what_can_be_a_base_is_checked(codec, tmp_path):
    write_weights(tmp_path / "svd.safetensors", {}, {"codec_hash": codec.hash.hex()})
    line = r"svd\.safetensors is an adapter of the method svd_lora, and base takes one of alice, .*, icmh$"
    with pytest.raises(lc.LoraCompError, match=line):
        load_method("svd_lora", codec, base=str(tmp_path / "svd.safetensors"))
    with pytest.raises(lc.LoraCompError, match=r"no weights for the adapter: .*missing\.safetensors is missing"):
        load_method("lora", codec, base=str(tmp_path / "missing.safetensors"))
    with pytest.raises(lc.LoraCompError, match=r"'alice' takes .*, not base"):
        load_method("alice", codec, base="x.safetensors")
    options = dataclasses.replace(METHODS["svd_lora"].options, base="x.safetensors")
    with pytest.raises(lc.LoraCompError, match="is trained for the frozen codec: leave base out"):
        METHODS["svd_lora"].pretrain(codec, options)


def test_results_depend_on_the_base(codec, tmp_path):
    paths = [write_base(tmp_path / f"{seed}.safetensors", codec, "calice", seed) for seed in (0, 1)]
    one, other = (load_method("svd_lora", codec, base=path) for path in paths)
    found = {json.dumps(dict(method.settings)) for method in (one, other, one.at(2), load_method("svd_lora", codec))}
    assert len(found) == 4 and isinstance(one, Stacked)


def test_the_commands_take_a_base(fixed_rate_codec, make_image, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "tic.safetensors", dict(fixed_rate_codec.named_parameters()), {})
    codec = lc.load_codec("tic", 2, "tic.safetensors")
    path = write_base(tmp_path / "base.safetensors", codec, "calice")
    (tmp_path / "images").mkdir()
    write_image("images/cat.png", make_image())
    chosen = f"codec=tic codec.weights=tic.safetensors task=human method=svd_lora method.base={path} engine.steps=1"
    assert cli.command(f"encode images/cat.png cat.lcz quality=2 {chosen}".split()) == 0
    assert "of the base," in capsys.readouterr().out
    assert cli.command(f"decode cat.lcz cat.png weights=tic.safetensors base={path}".split()) == 0
    assert cli.command(["info", "cat.lcz"]) == 0
    assert "base           calice" in capsys.readouterr().out
    run = f"run {chosen} data=folder data.path=images quality=[2,3] out=out"
    for _ in range(2):  # the second resumes
        assert cli.command(run.split()) == 0
        records = json.loads((tmp_path / "out/results.json").read_text())["records"]
        assert {(r["method"], r["quality"]) for r in records} == {("none", 2), ("svd_lora", 2), ("svd_lora", 3)}
    assert cli.command(f"decode cat.lcz dog.png weights=tic.safetensors adapter={path}".split()) == 2
    assert "base=PATH" in capsys.readouterr().err
