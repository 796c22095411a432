"""lora-comp report curves: rate curves of weights, adapters and qualities, from real files."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image

import lora_comp as lc
from lora_comp import cli
from lora_comp.data import write_image
from lora_comp.methods import alice, calice
from lora_comp.report.bdrate import bd_rate
from lora_comp.report.curves import decibels
from lora_comp.weights import read_weights, write_weights

CURVES = """
separate:
  weights: [q1.safetensors, q6.safetensors]
alice:
  weights: q6.safetensors
  adapter: [alice.safetensors, null]
calice:
  weights: q6.safetensors
  adapter: calice.safetensors
  quality: [1, 2.5, 6]
any rate:
  codec: tic-v
  weights: tic-v.safetensors
  quality: [1, 6]
"""


def write_adapter(path, codec, module, options, minutes):
    pretraining = module.Pretraining(codec, options)
    rng = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(value.shape, generator=rng) / 200 if name.endswith(".U") else value
        for name, value in pretraining.tensors().items()
    }
    card = {"codec": codec.name, "quality": 6, "codec_hash": codec.hash.hex(), "minutes": minutes}
    write_weights(path, tensors, card | pretraining.card | {"method": module.NAMES[0]})


@pytest.fixture(scope="module")
def made(tmp_path_factory, weights, stf_weights, make_image):
    """A folder with two small images, and one with seeded weights, adapters and the file of their curves."""
    folder = tmp_path_factory.mktemp("curves")
    (folder / "images").mkdir()
    (folder / "weights").mkdir()
    write_image(folder / "images/a.png", make_image(64, 64))
    write_image(folder / "images/b.png", make_image(80, 100))
    state = read_weights(stf_weights, "stf-s")[0]
    for quality, minutes in ((1, 10.5), (6, 20)):
        changed = {
            name: value * (1 + quality / 50) if name.startswith("g_a.") else value for name, value in state.items()
        }
        card = {"codec": "stf-s", "quality": quality, "minutes": minutes}
        write_weights(folder / f"weights/q{quality}.safetensors", changed, card)
    shutil.copy(weights, folder / "weights/tic-v.safetensors")
    codec = lc.load_codec("stf-s", 6, folder / "weights/q6.safetensors")
    write_adapter(folder / "weights/alice.safetensors", codec, alice, alice.AliceOptions(target=1), 3)
    write_adapter(folder / "weights/calice.safetensors", codec, calice, calice.CaliceOptions(), 4)
    (folder / "weights/curves.yaml").write_text(CURVES)
    return folder


def run(made, *words: str, file: str = "curves.yaml") -> int:
    return cli.command(["report", "curves", f"{made}/images", f"{made}/weights/{file}", f"out={made}/out", *words])


@pytest.fixture(scope="module")
def report(made):
    assert run(made, "against=calice") == 0
    return json.loads((made / "out/curves.json").read_text())


def test_curves_are_of_files_that_decode_to_their_points(made, report):
    assert (report["images"], report["folder"], report["against"]) == (2, "images", "calice")
    qualities = {label: [point["quality"] for point in curve["points"]] for label, curve in report["curves"].items()}
    assert qualities == {"separate": [1, 6], "alice": [1, 6], "calice": [1, 2.5, 6], "any rate": [1, 6]}
    codec = lc.load_codec("stf-s", 6, made / "weights/q6.safetensors")
    files = sorted((made / "out/points/alice-1/files").rglob("*.lcz"))
    point = report["curves"]["alice"]["points"][0]
    assert point["bytes"] == sum(file.stat().st_size for file in files) / 2
    decoded = [lc.decode(file, codec, adapter=made / "weights/alice.safetensors") for file in files]
    originals = [lc.data.read_image(made / f"images/{name}.png") for name in "ab"]
    psnrs = [-10 * (x - y).square().mean().log10() for x, y in zip(decoded, originals, strict=True)]
    assert point["psnr"] == pytest.approx(float(sum(psnrs) / 2), abs=1e-4)
    assert point["ms_ssim_db"] == pytest.approx(decibels(point["ms_ssim"]))


def test_bd_rates_are_against_the_chosen_curve(report):
    curves = report["curves"]
    plain = [curves["separate"]["points"][1], curves["alice"]["points"][1]]
    assert plain[0]["bpp"] == plain[1]["bpp"] and plain[0]["psnr"] == plain[1]["psnr"]
    points = {label: [(one["bpp"], one["ms_ssim_db"]) for one in curve["points"]] for label, curve in curves.items()}
    expected = bd_rate(points["calice"], points["alice"])
    found = curves["alice"]["bd_rate"]["ms_ssim_db"]
    assert found is None if expected != expected else found == pytest.approx(expected)
    assert curves["calice"]["bd_rate"]["psnr"] in (None, pytest.approx(0))


def test_what_training_and_storing_takes_is_counted(made, report):
    paths, curves = list((made / "weights").glob("*.safetensors")), report["curves"]
    numbers = {path.stem: sum(t.numel() for t in read_weights(path, "it")[0].values()) for path in paths}
    sizes = {path.stem: path.stat().st_size for path in paths}
    assert {label: (curve["parameters"], curve["minutes"]) for label, curve in curves.items()} == {
        "separate": (numbers["q1"] + numbers["q6"], 30.5),
        "alice": (numbers["alice"], 3),
        "calice": (numbers["calice"], 4),
        "any rate": (numbers["tic-v"], None),
    }
    assert curves["alice"]["bytes_trained"] == sizes["alice"]
    assert curves["alice"]["bytes_stored"] == sizes["alice"] + sizes["q6"]
    assert curves["separate"]["bytes_stored"] == sizes["q1"] + sizes["q6"]


def test_there_is_a_table_and_a_plot_and_a_second_run_codes_nothing(made, report, capsys):
    journals = {path: path.read_bytes() for path in (made / "out/points").rglob("records.jsonl")}
    assert len(journals) == 9
    assert run(made, "against=calice") == 0
    assert json.loads((made / "out/curves.json").read_text()) == report
    assert {path: path.read_bytes() for path in journals} == journals
    table = (made / "out/curves.md").read_text()
    assert table in capsys.readouterr().out
    assert {line.count("|") for line in table.splitlines() if line.startswith("|")} == {8, 10}
    assert Image.open(made / "out/curves.png").size[0] > 500


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "has no curves; one is LABEL: {weights: FILE"),
        ("a: [", "is no YAML file: "),
        ("a: 3", "curve a: a curve has codec, weights, adapter, quality, not 3"),
        ("a: {weight: q1.safetensors}", "curve a: a curve has codec, weights, adapter, quality, not "),
        ("a/b: {weights: q1.safetensors}", "curve a/b: a label has letters, digits"),
        ("a: {weights: missing.safetensors}", "curve a: there are no weights for the curve: "),
        ("a: {weights: 3}", "curve a: weights must be text, not 3"),
        ("a: {codec: tic-v, quality: low}", "curve a: quality must be a number, not 'low'"),
        ("a: {codec: jpg}", "curve a: codec must be tic, tic-v, stf or stf-s, not jpg"),
        ("a: {weights: tic-v.safetensors}", "curve a: codec must be tic, tic-v, stf or stf-s, not None"),
        ("a: {codec: tic-v, weights: tic-v.safetensors}", "tic-v.safetensors: give quality= of this codec"),
        ("a: {codec: tic, weights: q1.safetensors}", "curve a: .*q1.safetensors does not hold the weights of tic"),
        ("a: {weights: [q1.safetensors], adapter: [null, null]}", "one value for each point, not 1 and 2 values"),
        ("a: {weights: []}", "one value for each point, not 0 values"),
        ("a: {weights: q1.safetensors, adapter: q6.safetensors}", "curve a: .*q6.safetensors is not an adapter"),
        ("a: {weights: q1.safetensors, adapter: alice.safetensors}", "curve a: .*was trained for other weights"),
        (
            "a: {weights: q6.safetensors, adapter: calice.safetensors, quality: 7}",
            "quality must be a number from 1 to 6",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_said_in_one_line(made, tmp_path, capsys, content, line):
    (made / "weights/bad.yaml").write_text(content)
    assert run(made, f"out={tmp_path}/out", file="bad.yaml") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(line, said), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["against=vanilla"], "against must be separate, alice, calice or any rate, not 'vanilla'"),
        (["out=IMAGES/out"], "the results would lie among the images"),
    ],
)
def test_other_mistakes_are_said_in_one_line(made, capsys, words, line):
    assert run(made, *(word.replace("IMAGES", f"{made}/images") for word in words)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and line in said
