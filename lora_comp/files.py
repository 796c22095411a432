"""Files that are whole or not there."""

import os
from pathlib import Path

from lora_comp.errors import LoraCompError


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` beside `path` and rename it, so that nothing half-written ever has that name.

    Raises:
        LoraCompError: the folder is missing or not writable, or the disk is full; nothing is left behind.
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
    """The folder, made with its parents where it is missing. Raises LoraCompError where that cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoraCompError(f"cannot make the folder {path}: {error.strerror}") from None
    return path
