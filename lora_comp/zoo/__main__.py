"""lora-comp zoo: the weights that ship, and where published checkpoints come from.

python -m lora_comp.zoo              a table
python -m lora_comp.zoo fetch NAME   a published checkpoint into the cache
python -m lora_comp.zoo --write      registry.json anew, after weights in the package have changed
"""

import sys
from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table

from lora_comp.errors import LoraCompError
from lora_comp.program import report_errors
from lora_comp.reference import SYSTEMS
from lora_comp.zoo import registry

UNITS = {"psnr": " dB", "bpp": " bpp"}


def command(words: Sequence[str]) -> None:
    match list(words):
        case []:
            show(Console())
        case ["fetch", name]:
            entry, path = registry.find(name), registry.download(name)
            told = "its SHA-256 is as published" if entry.sha256 else "its authors name no checksum"
            print(f"{path}: {told}, {registry.digest(path)}")
        case ["--write"]:
            registry.write()
        case _:
            raise LoraCompError("the zoo takes no words, fetch NAME, or --write")


def show(console: Console) -> None:
    ours = Table("name", "kind", "MB", "scores", "SHA-256", title="ships here", box=box.SIMPLE_HEAD)
    for entry in registry.shipped():
        scores = ", ".join(f"{value:.4g}{UNITS.get(key, ' ' + key)}" for key, value in entry.scores.items())
        ours.add_row(
            entry.name,
            entry.kind,
            f"{entry.bytes / 1e6:.2f}",
            scores or "-",
            entry.sha256[:12] if entry.intact else "damaged",
        )
    console.print(ours)
    theirs = Table(box=box.SIMPLE_HEAD, title="published by others")
    theirs.add_column("name", no_wrap=True)
    theirs.add_column("import as", no_wrap=True)
    theirs.add_column("what, and whose page tells of it", overflow="fold")
    families = groupby(registry.published(), lambda entry: (entry.what, entry.system, entry.page))
    for (what, system, page), group in families:
        entries = list(group)
        names = entries[0].name + (f"..{entries[-1].name.rsplit('-', 1)[1]}" if len(entries) > 1 else "")
        theirs.add_row(names if entries[0].url else "-", system if system in SYSTEMS else "-", f"{what}\n{page}")
    console.print(theirs)


if __name__ == "__main__":
    sys.exit(report_errors(command)(sys.argv[1:]))
