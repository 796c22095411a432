"""Atomic writing of files."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import lora_comp as lc
from lora_comp.files import make_folder, write_file


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
