"""python -m lora_comp.report: the commands `lora-comp report ...`."""

import sys
from collections.abc import Sequence

from lora_comp.cli import command


def main(words: Sequence[str]) -> int:
    return command(["report", *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
