from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table

from lora_comp.reference import SYSTEMS
from lora_comp.settings import argument, setting
from lora_comp.zoo import registry

UNITS = {"psnr": " dB", "bpp": " bpp"}


@dataclass(frozen=True)
class ZooConfig:
    write: bool = setting(False, "write registry.json again, after weights in the package have changed")


@dataclass(frozen=True)
class FetchConfig:
    name: str = argument("a published checkpoint, as `lora-comp zoo` lists them")


def zoo(config: ZooConfig) -> None:
    """List the weights that ship, and the checkpoints that others have published.

    Examples:
      lora-comp zoo
      lora-comp zoo --write
    """
    if config.write:
        registry.write()
    else:
        show(Console())


def fetch(config: FetchConfig) -> None:
    """Download a published checkpoint into the cache (LORA_COMP_CACHE) and verify its checksum.

    Examples:
      lora-comp zoo fetch transtic-tic-1
      LORA_COMP_CACHE=checkpoints lora-comp zoo fetch transtic-tic-1
    """
    entry, path = registry.find(config.name), registry.download(config.name)
    verified = "its SHA-256 is as published" if entry.sha256 else "its authors name no checksum"
    print(f"{path}: {verified}, {registry.digest(path)}")


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
    theirs.add_column("what, and its page", overflow="fold")
    families = groupby(registry.published(), lambda entry: (entry.what, entry.system, entry.page))
    for (what, system, page), group in families:
        entries = list(group)
        names = entries[0].name + (f"..{entries[-1].name.rsplit('-', 1)[1]}" if len(entries) > 1 else "")
        theirs.add_row(names if entries[0].url else "-", system if system in SYSTEMS else "-", f"{what}\n{page}")
    console.print(theirs)
