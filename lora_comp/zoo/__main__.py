"""python -m lora_comp.zoo: the command `lora-comp zoo`."""

import sys

from lora_comp.cli import command

if __name__ == "__main__":
    sys.exit(command(["zoo", *sys.argv[1:]]))
