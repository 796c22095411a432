import errno
import os
from pathlib import Path

import pytest

from lora_comp.data import write_image


@pytest.fixture
def cat(tmp_path, make_image):
    write_image(tmp_path / "cat.png", make_image(33, 47))
    return str(tmp_path / "cat.png")


@pytest.fixture
def refused(capsys):
    """Run a command that is to fail: the one line that it leaves on stderr."""

    def refused(program, *words):
        capsys.readouterr()
        assert program([str(word) for word in words]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        return lines[0]

    return refused


@pytest.fixture
def fill_up():
    """From the call on the disk has no room for a whole file."""

    def write_bytes(path, data):
        with open(path, "wb") as file:
            file.write(data[:7])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda monkeypatch: monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.fixture
def everything_under():
    return lambda folder: sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
