"""python -m lora_comp.run: the command `lora-comp run`."""

import sys
from collections.abc import Sequence

from lora_comp.cli import command


def main(words: Sequence[str]) -> int:
    return command(["run", *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
