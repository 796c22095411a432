"""python -m lora_comp.train: the command `lora-comp train`."""

import sys
from collections.abc import Sequence

from lora_comp.cli import command


def main(words: Sequence[str]) -> int:
    return command(["train", *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
