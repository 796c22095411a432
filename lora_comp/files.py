"""Atomic writing of files."""

import os
from pathlib import Path

from lora_comp.errors import LoraCompError


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to a temporary file and rename it to `path`, so that `path` is never incomplete.

    Raises:
        LoraCompError: the folder is missing or not writable, or the disk is full; the temporary file is removed.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            unfinished.write_bytes(data)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise LoraCompError(f"cannot write {path}: {error.strerror or error}") from None


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder with its parents, if missing. Raises LoraCompError if that fails."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoraCompError(f"cannot make the folder {path}: {error.strerror}") from None
    return path
