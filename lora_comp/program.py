"""What the programs of the package share."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from lora_comp.errors import LoraCompError

STOPPED = "stopped; nothing was written"
RESUMES = "stopped; what is done is kept, and the same command resumes from there"


def report_errors(program: Callable[[], None], stopped: str = STOPPED) -> int:
    """Run a program; its exit code. A mistake of the user's is one line and 2, Ctrl-C prints `stopped` and is 130.

    Warnings that other libraries mean for programmers are not shown, unless Python is asked for them (python -W).
    """
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            program()
    except LoraCompError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    return 0


def read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise LoraCompError(f"cannot read {path}: {error.strerror}") from None
