"""What commands write: never over an input, and on any terminal or into a pipe that is closed."""

import io
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from lora_comp import cli
from lora_comp.data import read_image


@pytest.fixture
def plain(weights):
    return [f"codec.weights={weights}", "task=human", "method=none"]


@pytest.fixture
def coded(tmp_path, cat, plain):
    assert cli.command(["encode", cat, str(tmp_path / "cat.lcz"), *plain]) == 0
    return tmp_path / "cat.lcz"


@pytest.fixture
def inputs(tmp_path, cat, weights):
    """Files that a command reads, by the words that name them."""
    shutil.copy(weights, tmp_path / "w.safetensors")
    shutil.copy(cat, tmp_path / "mask.png")
    return {"codec.weights": tmp_path / "w.safetensors", "roi": tmp_path / "mask.png"}


@pytest.mark.parametrize("name", ["cat.png", "hard.png", "soft.png", "w.safetensors", "mask.png"])
@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_encode_leaves_what_it_reads(tmp_path, cat, inputs, refused, name, overwrite):
    os.link(cat, tmp_path / "hard.png")
    (tmp_path / "soft.png").symlink_to("cat.png")
    before = (tmp_path / name).read_bytes()
    words = [f"{key}={path}" for key, path in inputs.items()]
    line = refused(cli.command, "encode", cat, tmp_path / name, "task=human", *words, f"overwrite={overwrite}")
    assert f"{tmp_path / name} would be written over the input" in line
    assert (tmp_path / name).read_bytes() == before


def test_encode_replaces_its_own_files_and_others_when_told(tmp_path, cat, coded, plain, refused, capsys):
    other = tmp_path / "notes.txt"
    other.write_text("notes")
    assert "overwrite=true" in refused(cli.command, "encode", cat, other, *plain)
    assert other.read_text() == "notes"
    assert cli.command(["encode", cat, str(coded), *plain]) == 0
    assert cli.command(["encode", cat, str(other), *plain, "overwrite=true"]) == 0
    assert other.read_bytes() == coded.read_bytes()


def test_decode_replaces_an_image_only_when_told(tmp_path, cat, coded, weights, refused):
    original, words = Path(cat).read_bytes(), [f"weights={weights}"]
    assert "overwrite=true" in refused(cli.command, "decode", coded, cat, *words)
    assert "over the input" in refused(cli.command, "decode", coded, coded, *words, "overwrite=true")
    assert "over the input" in refused(cli.command, "decode", coded, weights, *words, "overwrite=true")
    assert Path(cat).read_bytes() == original
    assert cli.command(["decode", str(coded), str(tmp_path / "back.png"), *words]) == 0
    assert cli.command(["decode", str(coded), cat, *words, "overwrite=true"]) == 0
    assert read_image(cat).equal(read_image(tmp_path / "back.png"))


@pytest.mark.parametrize("path", ["", "folder", "new/", "-"])
def test_an_output_that_is_no_file_is_said_before_the_work(tmp_path, cat, plain, refused, monkeypatch, path):
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("lora_comp.commands.encode.read_image", lambda path: pytest.fail("it began"))
    refused(cli.command, "encode", cat, os.path.join(tmp_path, path) if path != "-" else path, *plain)


def test_a_long_name_goes_to_a_file_and_back(tmp_path, cat, plain, weights):
    name = "n" * 251
    shutil.copy(cat, tmp_path / f"{name}.png")
    assert cli.command(["encode", str(tmp_path / f"{name}.png"), str(tmp_path / f"{name}.lcz"), *plain]) == 0
    (tmp_path / "back").mkdir()
    back = tmp_path / "back" / f"{name}.png"
    assert cli.command(["decode", str(tmp_path / f"{name}.lcz"), str(back), f"weights={weights}"]) == 0
    assert back.exists()


def test_a_file_goes_through_pipes_and_devices(tmp_path, cat, coded, plain, weights, refused, capsys):
    pipes = [tmp_path / name for name in ("image", "file", "back")]
    for pipe in pipes:
        os.mkfifo(pipe)
    results = {}

    def feed(pipe, data):
        threading.Thread(target=lambda: pipe.write_bytes(data), daemon=True).start()

    def drain(pipe):
        thread = threading.Thread(target=lambda: results.update({pipe.name: pipe.read_bytes()}), daemon=True)
        thread.start()
        return thread

    capsys.readouterr()
    feed(pipes[0], Path(cat).read_bytes())
    thread = drain(pipes[1])
    assert cli.command(["encode", str(pipes[0]), str(pipes[1]), *plain]) == 0
    thread.join()
    assert results["file"] == coded.read_bytes()
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"{pipes[1]}: ") and told.err.count("\n") == 1
    feed(pipes[1], results["file"])
    thread = drain(pipes[2])
    assert cli.command(["decode", str(pipes[1]), str(pipes[2]), f"weights={weights}"]) == 0
    thread.join()
    with Image.open(io.BytesIO(results["back"])) as image:
        assert (image.format, image.size) == ("PNG", (47, 33))
    assert cli.command(["encode", cat, "/dev/null", *plain]) == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert "cannot write /dev/full: No space left on device" in refused(cli.command, "encode", cat, "/dev/full", *plain)


# what they print


COMMANDS = {"zoo": ["zoo"], "help": ["--help"], "zoo --help": ["zoo", "--help"], "info": ["info", "cat.lcz"]}


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp437", "utf-8"])
@pytest.mark.parametrize("name", COMMANDS)
def test_any_terminal_shows_what_commands_print(coded, monkeypatch, name, encoding):
    monkeypatch.chdir(coded.parent)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding))
    assert cli.command(COMMANDS[name]) == 0
    assert len(printed.getvalue()) > 200


def test_a_name_of_any_letters_is_printed(tmp_path, cat, plain, monkeypatch, refused):
    name = os.path.join(tmp_path, os.fsdecode("ключ–ü".encode() + b"\xff"))
    shutil.copy(cat, f"{name}.png")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "utf-8"))
    assert cli.command(["encode", f"{name}.png", f"{name}.lcz", *plain]) == 0
    assert b".lcz: " in printed.getvalue() and os.path.exists(f"{name}.lcz")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("output", ["closed pipe", "full", "none"])
def test_an_output_that_takes_nothing_is_no_traceback(coded, monkeypatch, capsys, name, output):
    monkeypatch.chdir(coded.parent)
    capsys.readouterr()
    if output == "none":
        monkeypatch.setattr(sys, "stdout", None)
        assert cli.command(COMMANDS[name]) == 0
        return
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer if output == "closed pipe" else "/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            code = cli.command(COMMANDS[name])
        except SystemExit as ended:  # rich ends the program itself
            code = ended.code
    says = "error: input or output: No space left on device\n"
    assert (code, capsys.readouterr().err) == ((1, "") if output == "closed pipe" else (2, says))


def test_a_program_into_a_closed_pipe_is_silent(coded):
    """Python itself must not complain either, when it writes out what is left."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lora_comp.cli", "info", str(coded)]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")
