"""The commands as a user types them: a right answer, or one line on stderr and exit code 2, and no unfinished file."""

import os
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lora_comp as lc
from lora_comp import api, cli
from lora_comp.data import read_image
from lora_comp.program import report_errors


@pytest.fixture
def lcz(tmp_path):
    return str(tmp_path / "cat.lcz")


@pytest.fixture
def plain(weights):
    """Words for an encode that is quick."""
    return [f"codec.weights={weights}", "task=human", "method=none"]


# encode, decode, info


@pytest.mark.parametrize("method", ["none", "svd_lora", "lora"])
def test_an_image_goes_to_a_file_and_back(tmp_path, cat, lcz, weights, network, capsys, method, everything_under):
    words = [f"codec.weights={weights}", f"task.network={network}", f"method={method}", "engine.steps=3", "quality=2"]
    assert cli.command(["encode", cat, lcz, *words]) == 0
    assert f"{os.path.getsize(lcz)} bytes" in capsys.readouterr().out
    assert cli.command(["info", lcz]) == 0
    told = capsys.readouterr().out.split("\n")
    assert ["height", "33"] in map(str.split, told) and ["width", "47"] in map(str.split, told)
    assert cli.command(["decode", lcz, str(tmp_path / "back.png"), f"weights={weights}"]) == 0
    expected = lc.decode(Path(lcz).read_bytes(), lc.load_codec("tic-v", 2, weights))
    assert (read_image(tmp_path / "back.png") - expected).abs().max() <= 0.51 / 255
    assert everything_under(tmp_path) == ["back.png", "cat.lcz", "cat.png"]


def images(folder):
    """A file of every kind of image that is unusual, and the size it decodes to."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    Image.new("RGB", (1, 1), (9, 9, 9)).save(folder / "one.png")
    Image.new("L", (20, 10), 99).save(folder / "grey.png")
    Image.new("RGB", (20, 10), (255, 0, 0)).convert("P").save(folder / "palette.png")
    Image.fromarray(np.full((10, 20), 40000, np.uint16)).save(folder / "deep.png")
    Image.new("RGBA", (20, 10), (9, 9, 9, 0)).save(folder / "transparent.png")
    Image.new("RGB", (20, 10)).save(folder / "turned.jpg", exif=exif)
    return {
        "one.png": (1, 1),
        "grey.png": (20, 10),
        "palette.png": (20, 10),
        "deep.png": (20, 10),
        "transparent.png": (20, 10),
        "turned.jpg": (10, 20),
    }


@pytest.mark.parametrize("name", ["one.png", "grey.png", "palette.png", "deep.png", "transparent.png", "turned.jpg"])
def test_unusual_images_are_images(tmp_path, lcz, plain, weights, name):
    size = images(tmp_path)[name]
    assert cli.command(["encode", str(tmp_path / name), lcz, *plain]) == 0
    assert cli.command(["decode", lcz, str(tmp_path / "back.png"), f"weights={weights}"]) == 0
    with Image.open(tmp_path / "back.png") as back:
        assert (back.size, back.mode) == (size, "RGB")


@pytest.mark.parametrize(
    "content, says",
    [(b"this is text\n", "not an image"), (b"", "empty file"), (None, "does not exist"), (b"\x89PNG\r\n\x1a\n", "")],
)
def test_what_is_no_image_is_named(tmp_path, lcz, plain, refused, content, says):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    line = refused(cli.command, "encode", path, lcz, *plain)
    assert str(path) in line and says in line
    assert not os.path.exists(lcz)


@pytest.mark.parametrize(
    "words, says",
    [
        (["quality=9"], "quality must be a number from 1 to 6, not 9"),
        (["quality=two"], "quality must be"),
        (["quality=[1,2]"], "quality must be"),
        (["method=[svd_lora,lora]"], "encode takes one method, not svd_lora and lora"),
        (["task=hearing"], "task must be cls, det, human, open, own or seg, not 'hearing'"),
        (["method=prompts"], "method must be alice, calice, icmh, lora, none, svd_lora or transtic, not 'prompts'"),
        (["engine.stepz=3"], "engine=default has no setting 'engine.stepz'; did you mean engine.steps?"),
        (["qualty=3"], "did you mean quality?"),
        (["quality=1,2"], "quality must be"),
        (["method=none", "method.rank=4"], "method=none has no setting 'method.rank'"),
        (["engine.steps=abc"], "engine.steps must be"),
        (["engine.steps=-1"], "engine.steps must be"),
        (["engine.steps=1.5"], "engine.steps must be"),
        (["refine=-1"], "refine must be an integer >= 0, not -1"),
        (["refine=long"], "refine must be an integer >= 0, not 'long'"),
        (["refine=0.5"], "refine must be"),
        (["engine.refine=3"], "engine=default has no setting 'engine.refine'"),
        (["engine.lr=0"], "engine.lr must be"),
        (["engine.lr=fast"], "engine.lr must be"),
        (["method=lora", "engine.recipe=all"], "recipe must be one of latents, adapter, published, not 'all'"),
        (["engine.tile=300"], "engine.tile must be an integer >= 128, a multiple of 128, not 300"),
        (["engine.batch=0"], "engine.batch must be"),
        (["engine.batch=all"], "engine.batch must be"),
        (["engine.threads=0"], "engine.threads must be"),
        (["engine.device=tpu"], "engine.device must be"),
        (["engine.device=cuda:99"], "engine.device=cuda:99 cannot be used"),
        (["method=svd_lora", "method.rank=0"], "method.rank must be"),
        (["method=svd_lora", "method.exponent=25"], "method.exponent must be"),
        (["method=svd_lora", "method.mlp=7"], "method.mlp must be"),
        (["method=svd_lora", "method.adapter=/nowhere"], "/nowhere"),
        (["codec.weights=/nowhere"], "/nowhere"),
        (["codec=jpeg"], "codec must be stf, stf-s, tic or tic-v, not 'jpeg'"),
        (["codec.name=tic"], "codec=tic-v has no setting 'codec.name'"),
        (["task=cls", "task.network=nothing"], "nothing"),
        (["task=cls", "task.network=null"], "task.network must be a path, not null"),
        (["data.limit=3"], "data"),
        (["+more=1"], "+more=1 adds or removes a setting"),
        (["~task"], "~task adds or removes a setting"),
        (["engine=3"], "engine must be default or published, not '3'"),
        (["words"], "encode takes no word 'words'"),
        (["quality=="], "quality must be"),
        (["engine.lr=${nowhere}"], "nowhere"),
        (["engine.lr=${"], "engine.lr must be"),
        (["method.adapter=${"], ""),
        (["--quality"], "--quality needs a value"),
    ],
)
def test_a_setting_that_cannot_be_is_named(cat, lcz, plain, refused, words, says):
    assert says in refused(cli.command, "encode", cat, lcz, *plain, *words)
    assert not os.path.exists(lcz)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["encode"],
        ["encode", "a.png"],
        ["decode", "a.lcz"],
        ["info"],
        ["play", "a", "b"],
        ["report"],
        ["zoo", "fetch"],
    ],
)
def test_words_that_are_no_command(refused, words):
    assert "--help" in refused(cli.command, *words)


def test_words_that_are_too_many_or_nearly_a_command(refused):
    assert "info takes no word 'b'" in refused(cli.command, "info", "a", "b")
    assert "did you mean decode or encode?" in refused(cli.command, "ecode")
    assert "no command 'report tabel'; did you mean report table, report rates or report bench?" in refused(
        cli.command, "report", "tabel", "a"
    )


def test_help_names_every_command_and_each_has_two_examples(capsys):
    assert cli.command(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"lora-comp {name} " in listed
        assert cli.command([*name.split(), "--help"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: lora-comp {name}") and "Examples:" in out
        assert len(re.findall(rf"(lora-comp|lora_comp\.report|checkpoints lora-comp) {name}|cards$", out, re.M)) >= 3


def test_help_lists_what_can_be_set(capsys):
    assert cli.command(["encode", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "usage: lora-comp encode IMAGE FILE [SETTING=VALUE ...]" in out
    assert (
        "quality=null rate point, 1 for the fewest bits; null: 2, unless a size is set (a number >= 0 or null)" in out
    )
    assert "method.rank=null rank of a seeded adapter; null: 4 (an integer from 1 to 255 or null)" in out
    assert "method=lora has method.exponent=8" in out
    assert "engine=published has engine.steps=40 engine.lr=0.005 engine.recipe=published" in out


def test_the_zoo_is_listed_and_asked_for_a_checkpoint(capsys, refused):
    assert cli.command(["zoo"]) == 0
    assert "tic-v" in capsys.readouterr().out
    assert "no published checkpoint 'jpeg'" in refused(cli.command, "zoo", "fetch", "jpeg")
    assert "zoo fetch needs NAME" in refused(cli.command, "zoo", "fetch")
    assert "zoo takes no word 'list'" in refused(cli.command, "zoo", "list")


@pytest.fixture
def coded(cat, lcz, plain):
    assert cli.command(["encode", cat, lcz, *plain]) == 0
    return Path(lcz)


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda data: b"", "not a lora_comp file"),
        (lambda data: b"text", "not a lora_comp file"),
        (lambda data: data[:-1], "truncated"),
        (lambda data: data[:3] + b"\x09" + data[4:], "version 9"),
        (lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], "corrupt"),
        (lambda data: data + b"!", "too long"),
    ],
)
def test_a_damaged_file_says_how_and_no_image_is_written(
    tmp_path, coded, weights, refused, damage, says, everything_under
):
    coded.write_bytes(damage(coded.read_bytes()))
    assert says in refused(cli.command, "decode", coded, tmp_path / "back.png", f"weights={weights}")
    assert says in refused(cli.command, "info", coded)
    assert everything_under(tmp_path) == ["cat.lcz", "cat.png"]


def test_decoding_needs_the_weights_of_the_encoder(tmp_path, coded, refused, everything_under):
    refused(cli.command, "decode", coded, tmp_path / "back.png")
    refused(cli.command, "decode", coded, tmp_path / "back.png", "weights=/nowhere")
    assert "wights" in refused(cli.command, "decode", coded, tmp_path / "back.png", "wights=a")
    assert "nowhere.lcz" in refused(cli.command, "decode", "nowhere.lcz", tmp_path / "back.png")
    assert str(tmp_path) in refused(cli.command, "decode", tmp_path, tmp_path / "back.png")
    assert everything_under(tmp_path) == ["cat.lcz", "cat.png"]


@pytest.mark.parametrize("folder", ["/proc", "missing", "cat.png"])  # not even root may write to /proc
def test_a_folder_that_takes_no_file(tmp_path, cat, coded, plain, weights, refused, folder, everything_under):
    before = everything_under(tmp_path)
    file, back = (os.path.join(tmp_path, folder, name) for name in ("b.lcz", "b.png"))
    assert f"cannot write {file}" in refused(cli.command, "encode", cat, file, *plain)
    assert f"cannot write {back}" in refused(cli.command, "decode", coded, back, f"weights={weights}")
    assert everything_under(tmp_path) == before


def test_a_full_disk_leaves_no_half_file(
    tmp_path, cat, coded, plain, weights, refused, monkeypatch, everything_under, fill_up
):
    before, old = everything_under(tmp_path), coded.read_bytes()
    fill_up(monkeypatch)
    assert "No space left" in refused(cli.command, "encode", cat, coded, *plain)
    assert "No space left" in refused(cli.command, "decode", coded, tmp_path / "back.png", f"weights={weights}")
    assert everything_under(tmp_path) == before
    assert coded.read_bytes() == old


def test_ctrl_c_leaves_nothing_and_no_traceback(tmp_path, cat, lcz, plain, capsys, monkeypatch, everything_under):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "encode", stop)
    assert cli.command(["encode", cat, lcz, *plain]) == 130
    assert capsys.readouterr().err == "stopped; nothing was written\n"
    assert everything_under(tmp_path) == ["cat.png"]


# as programs


@pytest.mark.parametrize("words", [["lora_comp.cli", "encode", "text.png", "a.lcz"], ["lora_comp.run", "task=nothing"]])
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, words, everything_under):
    (tmp_path / "text.png").write_text("text")
    ended = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert everything_under(tmp_path) == ["text.png"]


def test_info_waits_neither_for_torch_nor_for_compressai(cat, lcz, plain):
    """It reads a header: a folder of files is listed in a moment."""
    assert cli.command(["encode", cat, lcz, *plain]) == 0
    program = (
        "import sys; from lora_comp import cli; code = cli.command(['info', sys.argv[1]]);"
        "sys.exit(code or sum(name in sys.modules for name in ('torch', 'compressai', 'numpy', 'hydra')))"
    )
    assert subprocess.run([sys.executable, "-c", program, lcz], capture_output=True).returncode == 0


def test_warnings_that_libraries_mean_for_programmers_are_not_shown(recwarn):
    assert report_errors(partial(warnings.warn, "use another function", FutureWarning)) == 0
    assert not recwarn
    warnings.warn("of the caller's", FutureWarning, stacklevel=1)
    assert len(recwarn) == 1
