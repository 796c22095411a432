"""What the programs of the package share."""

import functools
import sys
from collections.abc import Callable, Sequence

from lora_comp.errors import LoraCompError


def report_errors(
    command: Callable[[Sequence[str]], None],
    stopped: str = "stopped; what is done is kept, and the same command goes on from there",
) -> Callable[[Sequence[str]], int]:
    """A command as a program: a mistake of the user's is one line and exit code 2, Ctrl-C is exit code 130."""

    @functools.wraps(command)
    def program(words: Sequence[str]) -> int:
        try:
            command(words)
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

    return program
