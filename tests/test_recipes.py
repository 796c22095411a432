"""A codec, a method and a task take one file and one registry line each. docs/ shows the same files as recipes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

import lora_comp as lc
from lora_comp import cli
from lora_comp.codecs import CODECS
from lora_comp.data import Sample
from lora_comp.evaluate import Point, evaluate
from lora_comp.methods import METHODS, FitSettings
from lora_comp.tasks import TASKS

TOYS = Path(__file__).parent / "toys"
sys.path.insert(0, str(TOYS))
import codec as toy_codec  # noqa: E402
import method as toy_method  # noqa: E402
import task as toy_task  # noqa: E402

DECODE = f"""
import sys
sys.path.insert(0, {str(TOYS)!r})
import codec, method, torch
import lora_comp as lc
lc.codecs.CODECS["blocks"] = codec.SPEC
lc.methods.METHODS["sharpen"] = method.SPEC
data = open(sys.argv[1], "rb").read()
facts = lc.info(data)
weights = None if facts["codec"] == "blocks" else sys.argv[2]
torch.save(lc.decode(data, lc.load_codec(facts["codec"], facts["quality"], weights)), sys.argv[3])
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(CODECS, "blocks", toy_codec.SPEC)
    monkeypatch.setitem(METHODS, "sharpen", toy_method.SPEC)
    monkeypatch.setitem(TASKS, "colours", toy_task.Colours)


@pytest.mark.parametrize("toy", ["codec", "method", "task"])
def test_recipes_have_at_most_60_lines(toy):
    assert len((TOYS / f"{toy}.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    "codec_name, method, task",
    [
        ("blocks", "none", "colours"),
        ("blocks", "sharpen", "colours"),
        ("tic-v", "sharpen", "human"),
        ("tic-v", "sharpen", "colours"),
        ("tic-v", "svd_lora", "colours"),
    ],
)
def test_recipes_encode_decode_in_another_process_and_score(
    tmp_path, codec, weights, make_image, codec_name, method, task
):
    made = lc.load_codec("blocks", 2, weights=None) if codec_name == "blocks" else codec
    judge, sample = lc.load_task(task), Sample("a", make_image(60, 100))
    chosen = lc.load_method(method, made, judge.key)
    with Progress(disable=True) as progress:
        records = evaluate([sample], [Point(made, [chosen])], judge, FitSettings(steps=2, lr=0.02), tmp_path, progress)
    (record,) = json.loads((tmp_path / "results.json").read_text())["records"]
    assert records.requested[0] == record
    file, out = tmp_path / record["file"], tmp_path / "decoded.pt"
    assert file.stat().st_size == record["bytes"]
    subprocess.run([sys.executable, "-c", DECODE, file, weights, out], check=True)
    decoded = torch.load(out)
    facts = lc.info(file.read_bytes())
    if codec_name == "blocks":
        assert decoded.shape == (3, 8, 13) and "psnr" not in record
        assert facts["output"] == "features of blocks" and facts["bytes_y"] > 0
    else:
        assert decoded.shape == (3, 60, 100) and facts["output"] == "image"
    assert torch.equal(decoded, lc.decode(file.read_bytes(), made))
    assert judge.measure(decoded, sample)["score"] == pytest.approx(record["score"])
    if method == "sharpen":
        assert (facts["method"], facts["adapter"], record["bytes_adapter"]) == ("sharpen", None, 0)
        assert record["loss_before"] is None and record["loss_after"] > 0


def test_damaged_files_raise_bitstream_error(make_image):
    made = lc.load_codec("blocks", 2, weights=None)
    data = lc.encode(make_image(), made, lc.load_task("colours"), method="sharpen").data
    for i in range(len(data)):
        with pytest.raises(lc.BitstreamError):
            lc.decode(data[:i] + bytes([data[i] ^ 0x41]) + data[i + 1 :], made)


def test_a_region_of_interest_with_a_feature_codec_raises(make_image):
    made = lc.load_codec("blocks", 2, weights=None)
    with pytest.raises(lc.LoraCompError, match="roi= needs a codec that decodes to an image"):
        lc.encode(make_image(), made, lc.load_task("colours"), method="none", roi=torch.ones(64, 64))


def test_their_options_are_words_of_the_command_line(tmp_path, capsys):
    words = ["codec=blocks", "codec.weights=null", "method=sharpen", "method.amount=0.5", "task=colours"]
    rest = ["data.limit=1", "quality=2", f"out={tmp_path}"]
    assert cli.command(["run", *words, *rest]) == 0
    records = json.loads((tmp_path / "results.json").read_text())["records"]
    assert [(r["codec"], r["method"], r["task"]) for r in records] == [
        ("blocks", "none", "colours"),
        ("blocks", "sharpen", "colours"),
    ]
    capsys.readouterr()
    assert cli.command(["run", *words, "method.amount=much"]) == 2
    assert capsys.readouterr().err == "error: method.amount must be a number, not 'much'\n"


@pytest.mark.parametrize("codec_name, method", [("blocks", "none"), ("tic-v", "sharpen")])
def test_latents_of_recipes_are_refined(codec, make_image, codec_name, method):
    made = lc.load_codec("blocks", 1, weights=None) if codec_name == "blocks" else codec
    plain, refined = (lc.encode(make_image(), made, toy_task.Colours(), method, refine=steps) for steps in (0, 20))
    assert refined.method == method
    assert refined.loss_after <= plain.loss_after
