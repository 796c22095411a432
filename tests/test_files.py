"""Atomic writing of files, and what is never written over."""

import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import lora_comp as lc
from lora_comp.files import check_output, make_folder, short_name, write_file


def test_a_file_is_written_and_replaced(tmp_path):
    for data in (b"one", b"", b"another" * 1000):
        write_file(tmp_path / "a.lcz", data)
        assert (tmp_path / "a.lcz").read_bytes() == data
    assert os.listdir(tmp_path) == ["a.lcz"]


def fail_with(monkeypatch, call, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call[0], call[1], fail)


@pytest.mark.parametrize(
    "call, number",
    [((os, "replace"), errno.EACCES), ((os, "replace"), errno.EROFS), ((Path, "write_bytes"), errno.ENOSPC)],
)
def test_a_failed_write_leaves_the_old_file_only(tmp_path, monkeypatch, call, number):
    (tmp_path / "a.lcz").write_bytes(b"old")
    fail_with(monkeypatch, call, number)
    with pytest.raises(lc.LoraCompError) as error:
        write_file(tmp_path / "a.lcz", b"new")
    assert str(error.value) == f"cannot write {tmp_path / 'a.lcz'}: {os.strerror(number)}"
    assert os.listdir(tmp_path) == ["a.lcz"]
    assert (tmp_path / "a.lcz").read_bytes() == b"old"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.lcz", b"new")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on the file size simulates a full disk: both fail in the middle of a write."""
    path = tmp_path / "a.lcz"
    code = f"from lora_comp.files import write_file; write_file({str(path)!r}, bytes(99999))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert run.stderr.splitlines()[-1].startswith(f"lora_comp.errors.LoraCompError: cannot write {path}: ")
    assert os.listdir(tmp_path) == []


def test_make_folder_makes_parents(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("taken", ["file/a", "file"])
def test_paths_below_a_file_raise(tmp_path, taken):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(lc.LoraCompError, match="cannot make the folder"):
        make_folder(tmp_path / taken)
    with pytest.raises(lc.LoraCompError, match="cannot write"):
        write_file(tmp_path / "file" / "a", b"")


# what is written to


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("hops", [1, 2])
def test_a_link_stays_one_and_its_file_is_written(tmp_path, exists, hops):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "a.lcz"
    if exists:
        target.write_bytes(b"old")
    for i in range(hops):
        (tmp_path / f"{i}.lcz").symlink_to(target if i == 0 else f"{i - 1}.lcz")
    link = tmp_path / f"{hops - 1}.lcz"
    write_file(link, b"new")
    assert link.is_symlink() and link.read_bytes() == target.read_bytes() == b"new"
    assert os.listdir(tmp_path / "folder") == ["a.lcz"]


def test_a_circle_of_links_raises(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for write in (lambda path: write_file(path, b""), check_output):
        with pytest.raises(lc.LoraCompError, match="cannot write"):
            write(tmp_path / "a")


def test_a_pipe_and_devices_stay_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_file(tmp_path / "pipe", b"new" * 10000)
    reader.join()
    assert read == [b"new" * 10000] and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    (tmp_path / "null").symlink_to("/dev/null")
    for device in ("/dev/null", tmp_path / "null"):
        write_file(device, b"new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and (tmp_path / "null").is_symlink()
    with pytest.raises(lc.LoraCompError, match="cannot write /dev/full: No space left"):
        write_file("/dev/full", b"new")
    assert sorted(os.listdir(tmp_path)) == ["null", "pipe"]


@pytest.mark.parametrize("redirected", ["pipe", "file"])
def test_the_standard_output_is_written_to(tmp_path, redirected):
    code = "from lora_comp.files import write_file; write_file('/dev/stdout', b'new')"
    if redirected == "pipe":
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).stdout == b"new"
        return
    with open(tmp_path / "a.lcz", "wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "a.lcz").read_bytes() == b"new" and os.listdir(tmp_path) == ["a.lcz"]


@pytest.mark.parametrize("name", ["a" * 251 + ".lcz", "é" * 125 + ".lcz", "b" * 255])
def test_the_longest_names_are_written(tmp_path, name):
    write_file(tmp_path / name, b"new")
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(lc.LoraCompError, match="File name too long"):
        write_file(tmp_path / f"{name}{'c' * 9}", b"new")


def test_a_file_keeps_its_permissions(tmp_path):
    (tmp_path / "a.lcz").write_bytes(b"old")
    os.chmod(tmp_path / "a.lcz", 0o640)
    write_file(tmp_path / "a.lcz", b"new")
    assert stat.S_IMODE(os.stat(tmp_path / "a.lcz").st_mode) == 0o640


@pytest.mark.parametrize(
    "name, short",
    [("a.lcz", "a.lcz"), ("a" * 300 + ".lcz", "a"), ("é" * 200 + ".lcz", "é"), ("x" * 250 + ".y" * 9, "x")],
)
def test_names_are_shortened_to_what_a_folder_takes(tmp_path, name, short):
    made = short_name(name)
    assert made.startswith(short) and Path(made).suffix == Path(name).suffix
    assert len(os.fsencode(made)) <= 255 and (made == name) == (len(os.fsencode(name)) <= 255)
    assert short_name("other" + name[5:]) != made or name == "a.lcz"
    write_file(tmp_path / made, b"")


# what is not written over


@pytest.fixture
def input_(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"an image")
    os.link(tmp_path / "cat.png", tmp_path / "hard.png")
    (tmp_path / "soft.png").symlink_to("cat.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "far.png").symlink_to("../soft.png")
    return tmp_path / "cat.png"


@pytest.mark.parametrize(
    "output", ["cat.png", "hard.png", "soft.png", "folder/far.png", "folder/../cat.png", "./cat.png"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_an_output(tmp_path, input_, output, overwrite):
    output = os.path.join(tmp_path, output)
    with pytest.raises(lc.LoraCompError) as error:
        check_output(output, ["scenes", tmp_path / "missing", input_], overwrite, lambda start: True)
    assert str(error.value) == f"{output} would be written over the input {input_}: name another file"


def test_a_file_that_is_not_ours_needs_overwrite(tmp_path, input_):
    (tmp_path / "ours.lcz").write_bytes(b"LCZ")
    (tmp_path / "empty").touch()
    for path in ("ours.lcz", "empty", "new.lcz", "folder/new.lcz"):
        check_output(tmp_path / path, [input_], False, lambda start: start == b"LCZ")
    for path in ("cat.png", "soft.png"):
        with pytest.raises(
            lc.LoraCompError, match="exists and would be lost: name another file, or set overwrite=true"
        ):
            check_output(tmp_path / path)
        check_output(tmp_path / path, overwrite=True)


@pytest.mark.parametrize(
    "path, says",
    [
        ("folder", "Is a directory"),
        ("new/", "Is a directory"),
        ("missing/a.lcz", "No such file"),
        ("cat.png/a.lcz", "Not a directory"),
        ("n" * 256, "File name too long"),
        ("dangling", "No such file"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(tmp_path, input_, path, says):
    (tmp_path / "dangling").symlink_to("nowhere/a.lcz")
    with pytest.raises(lc.LoraCompError, match="cannot write .*" + says):
        check_output(os.path.join(tmp_path, path))


def test_devices_and_pipes_may_be_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", "/dev/full", tmp_path / "pipe"):
        check_output(path, [path])
    with pytest.raises(lc.LoraCompError, match="/dev/stdout"):
        check_output("-")
