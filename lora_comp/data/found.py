"""The image files in a folder, and what else lies there."""

import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

# Documents, and formats that Pillow knows by name alone. A .pcd is more often a point cloud than a Photo CD.
NOT_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PCD", "PDF", "WMF"}
# What systems and programs leave beside people's files, besides names that begin with a dot.
HIDDEN = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"}
OTHER_NAMES = {"val": ("valid", "validation")}  # of a split


@cache
def suffixes() -> frozenset[str]:
    """Those of the image formats that Pillow reads here, in lower case."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in NOT_IMAGES)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in HIDDEN


def below(root: Path, split: str) -> Path:
    """The sub-folder of a split, if there is one, else the folder itself."""
    named = (root / name for name in (split, *OTHER_NAMES.get(split, ())))
    return next((folder for folder in named if split and folder.is_dir()), root)


class Found(NamedTuple):
    """images: sorted. skipped: how many of what was not read."""

    images: list[Path]
    skipped: Counter[str]


def find_images(folder: Path, deep: bool = True) -> Found:
    """The image files of a folder, by their suffixes. Links to files and folders are followed, nothing hidden is read.

    deep: with those in its sub-folders.
    """
    skipped = Counter[str]()
    return Found(sorted(_walk(folder, skipped, deep, set())), skipped)


def _walk(folder: Path, skipped: Counter[str], deep: bool, above: set[str]) -> list[Path]:
    try:
        with os.scandir(folder) as listed:
            entries = list(listed)
    except OSError:
        skipped["folders that cannot be opened"] += 1
        return []
    above = above | {os.path.realpath(folder)}
    images: list[Path] = []
    for entry in entries:
        if is_hidden(entry.name):
            skipped["hidden files and folders"] += 1
        elif entry.is_symlink() and not os.path.exists(entry.path):
            skipped["broken links"] += 1
        elif entry.is_dir():
            if deep and os.path.realpath(entry.path) not in above:
                images += _walk(folder / entry.name, skipped, deep, above)
        elif not entry.is_file():
            skipped["pipes and devices"] += 1
        elif (suffix := os.path.splitext(entry.name)[1].lower()) in suffixes():
            images.append(folder / entry.name)
        else:
            skipped[f"{suffix} files" if suffix else "files without suffix"] += 1
    return images


def counted(skipped: Counter[str]) -> str:
    """The counts in words, the largest first: "3 .txt files, 1 broken link"."""
    ordered = sorted(skipped.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{number} {what if number > 1 else _one(what)}" for what, number in ordered[:6]]
    rest = sum(number for _, number in ordered[6:])
    return ", ".join(shown) + (f" and {rest} others" if rest else "")


def _one(what: str) -> str:
    """The singular."""
    words = {"hidden files and folders": "hidden file or folder", "pipes and devices": "pipe or device"}
    plural = next((many for many in ("images in", "folders that", "links", "files") if many in what), "")
    return words.get(what) or what.replace(plural, plural.replace("s", "", 1), 1)
