"""Reading of files, and writing that loses nothing."""

import contextlib
import os
import secrets
import stat
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from lora_comp.errors import LoraCompError

MAX_NAME = 255  # bytes, on all usual file systems


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` so that `path` is never incomplete: to a temporary file, which is then renamed.

    A symbolic link stays one: the file that it names is written. A device or a pipe is written to as it is. A file that
    is replaced keeps its permissions.

    Raises:
        LoraCompError: the folder is missing or not writable, the name is too long, or the disk is full; the temporary
            file is removed.
    """
    try:
        status = _status(path)
        target = Path(os.path.realpath(path))
        if status is not None and not (stat.S_ISREG(status.st_mode) and _is(target, status)):
            with open(path, "wb") as file:
                file.write(data)
            return
        # The name is short and says nothing, since with that of the file it could be longer than a name may be.
        unfinished = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            unfinished.write_bytes(data)
            if status is not None:
                with contextlib.suppress(OSError):  # file systems without permissions
                    os.chmod(unfinished, stat.S_IMODE(status.st_mode))
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise LoraCompError(f"cannot write {path}: {error.strerror or error}") from None


def check_output(
    path: str | os.PathLike,
    inputs: Iterable[str | os.PathLike] = (),
    overwrite: bool = False,
    ours: Callable[[bytes], bool] = lambda start: False,
) -> None:
    """Raise LoraCompError where writing `path` would destroy something, or will fail, before work is done for it.

    An input is never written to, by whatever name: another path, a link, other letters on a file system without case.
    Another regular file that exists needs `overwrite`, unless it is empty or `ours` is true of its first bytes.
    """
    if str(path) == "-":
        raise LoraCompError("- is no file name; for the standard output write /dev/stdout, and ./- for a file")
    try:
        status = _status(path)
        if os.fspath(path).endswith(os.sep) or (status and stat.S_ISDIR(status.st_mode)):
            raise LoraCompError(f"cannot write {path}: Is a directory; name a file in it")
        if status and not stat.S_ISREG(status.st_mode):
            return
        folder = Path(os.path.realpath(path)).parent
        os.stat(folder)  # raises if it is missing
        if not os.access(folder if status is None else path, os.W_OK):
            raise LoraCompError(f"cannot write {path}: Permission denied")
        if status is None:
            return
        for one in inputs:
            if _is(one, status):
                raise LoraCompError(f"{path} would be written over the input {one}: name another file")
        if overwrite or not status.st_size:
            return
        with open(path, "rb") as file:
            known = ours(file.read(16))
    except OSError as error:
        raise LoraCompError(f"cannot write {path}: {error.strerror or error}") from None
    if not known:
        raise LoraCompError(f"{path} exists and would be lost: name another file, or set overwrite=true")


def contents(data: bytes | bytearray | memoryview | str | os.PathLike) -> bytes:
    """The bytes of a file, from its path or as they are. Raises LoraCompError for what is neither."""
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    if isinstance(data, str | os.PathLike):
        return read_file(data)
    raise LoraCompError(f"a coded file is bytes or a path, not {type(data).__name__}")


def read_file(path: str | os.PathLike) -> bytes:
    """Raises LoraCompError for a file that cannot be read."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LoraCompError(f"cannot read {path}: {reason}") from None


def short_name(name: str) -> str:
    """A file name that is not too long: of more than 255 bytes, its start, a checksum of it all, and its suffix."""
    whole = os.fsencode(name)
    if len(whole) <= MAX_NAME:
        return name
    end = os.fsencode(f"~{zlib.crc32(whole):08x}{os.path.splitext(name)[1][:16]}")
    start = whole[: MAX_NAME - len(end)].decode(errors="ignore")
    return start + os.fsdecode(end)


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder with its parents, if missing. Raises LoraCompError if that fails."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoraCompError(f"cannot make the folder {path}: {error.strerror}") from None
    return path


def _status(path: str | os.PathLike) -> os.stat_result | None:
    """Of the file that a path names, through links; None if there is none yet."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is(path: str | os.PathLike, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except (OSError, ValueError):  # also for what is no path, as the name of a network
        return False
