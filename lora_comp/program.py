"""What the programs of the package share."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from lora_comp.config import leaves
from lora_comp.errors import LoraCompError, LoraCompWarning

STOPPED = "stopped; nothing was written"
RESUMES = "stopped; what is done is kept, and the same command resumes from there"
UNREAD = 1  # exit code where the reader of the output has left, as `head` does


def report_errors(program: Callable[[], None], stopped: str = STOPPED) -> int:
    """Run a program; its exit code. A mistake of the user's is one line and 2, Ctrl-C prints `stopped` and is 130.

    Warnings of this package are lines that begin with "note". Those that other libraries mean for programmers are not
    shown, unless Python is asked for them (python -W).
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # what a terminal cannot show must not stop a program
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", LoraCompWarning)
                warnings.showwarning = lambda message, *_, **__: _tell(f"note: {message}")
            program()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, since Python itself would print a traceback
    except LoraCompError as error:
        _tell(f"error: {error}")
        return 2
    except BrokenPipeError:
        _discard(sys.stdout)
        return UNREAD
    except OSError as error:
        _tell(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
        _discard(sys.stdout)
        return 2
    except KeyboardInterrupt:
        _tell(stopped)
        return 130
    return 0


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        print(line, file=sys.stderr)


def _discard(stream: TextIO) -> None:
    """Send what a stream still holds to nowhere, since Python writes it when it ends, and fails again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def paths_read(settings: Any, output: str) -> list[str]:
    """What the paths of a command's settings are, but for the argument `output`; names, as of a network, among them."""
    values = [entry.value for name, entry in leaves(settings).items() if name != output and entry.about.path]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [one for one in flat if isinstance(one, str)]
