"""The model zoo: the weights in the package with sizes, SHA-256 and scores, and the URLs of published checkpoints.

`lora-comp zoo` lists both. registry.json, written by `write`, holds the size and SHA-256 of each file in the package.
published.json lists checkpoints as their authors' READMEs do, with the SHA-256 or its first digits; null if they give
none, or if no checkpoint was published.
"""

import hashlib
import http.client
import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

from lora_comp import zoo
from lora_comp.errors import LoraCompError
from lora_comp.files import make_folder, write_file
from lora_comp.weights import read_weights

CHUNK = 1 << 20
BROWSER_ONLY = ("drive.google.com",)  # serves a page instead of the file


@dataclass(frozen=True)
class Shipped:
    """A file of weights in the package.

    kind: "codecs", "adapters" or "networks".
    bytes, sha256: size and SHA-256 when the registry was written.
    intact: whether the file still has this SHA-256.
    card: metadata of the training; empty if the file is not intact.
    scores: results by metric; empty if none were measured.
    """

    name: str
    kind: str
    path: Path
    bytes: int
    sha256: str
    intact: bool
    card: dict = field(repr=False)
    scores: dict[str, float]


@dataclass(frozen=True)
class Published:
    """A checkpoint published by others, or an archive of several.

    what: a description.
    system: name for `lora-comp import`, which may not support it yet.
    page: the authors' page.
    url: of the file; None if none was published.
    sha256: at least its first digits; None if unknown.
    """

    name: str
    what: str
    system: str
    page: str
    url: str | None
    sha256: str | None


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()


def shipped() -> list[Shipped]:
    """The weights in the package, by kind and name."""
    entries = []
    for name, facts in json.loads((zoo.ROOT / "registry.json").read_text()).items():
        path = zoo.ROOT / name
        intact = path.is_file() and digest(path) == facts["sha256"]
        card, scores = _card_and_scores(path, facts["sha256"]) if intact else ({}, {})
        entries.append(
            Shipped(path.stem, path.parent.name, path, facts["bytes"], facts["sha256"], intact, card, scores)
        )
    return entries


def ships(path: Path) -> bool:
    """Whether a file of weights is one that ships in the package."""
    return path.exists() and path.relative_to(zoo.ROOT).as_posix() in json.loads(
        (zoo.ROOT / "registry.json").read_text()
    )


def _card_and_scores(path: Path, sha256: str) -> tuple[dict, dict[str, float]]:
    """Metadata of a file of weights, and the scores that were measured with exactly this file."""
    if path.parent.name == "networks":
        card = json.loads(path.with_suffix(".json").read_text())
        return card, {k: card[k] for k in ("top1", "mAP", "mask mAP") if k in card}
    card = read_weights(path, path.stem)[1]
    if path.parent.name == "adapters":
        return card, {k: card[k] for k in ("loss", "bpp", "distortion") if k in card}
    measured = path.with_name(f"{card['codec']}.json")
    scores = json.loads(measured.read_text()) if measured.exists() else {"curve": []}
    rows = [row for row in scores["curve"] if row["sha256"] == sha256]
    if len(rows) > 1:  # weights for several rate points
        return card, {f"% rate over {name}": rate for name, rate in scores["bd_rate"].items() if rate is not None}
    return card, {name: row[name] for row in rows for name in ("bpp", "psnr")}


def write() -> None:
    """Write registry.json, after weights in the package have changed."""
    files = sorted(zoo.ROOT.rglob("*.safetensors"))
    facts = {
        path.relative_to(zoo.ROOT).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)} for path in files
    }
    write_file(zoo.ROOT / "registry.json", (json.dumps(facts, indent=1) + "\n").encode())


def published() -> list[Published]:
    """The published checkpoints; a system that published none has one entry with url None."""
    return list(_published())


def _published() -> Iterator[Published]:
    for family in json.loads((zoo.ROOT / "published.json").read_text()):
        common = {key: family[key] for key in ("what", "system", "page")}
        if not family["files"]:
            yield Published(family["name"], **common, url=None, sha256=None)
        for part, file in family["files"].items():
            yield Published(f"{family['name']}-{part}".rstrip("-"), **common, url=file["url"], sha256=file["sha256"])


def cache() -> Path:
    """Folder of downloads: LORA_COMP_CACHE, or lora_comp in the user's cache folder."""
    chosen = os.environ.get("LORA_COMP_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_comp"


def find(name: str) -> Published:
    """The published checkpoint of this name. Raises LoraCompError if there is none."""
    by_name = {entry.name: entry for entry in published()}
    if name not in by_name:
        raise LoraCompError(f"there is no published checkpoint {name!r}; `lora-comp zoo` lists them")
    return by_name[name]


def download(name: str) -> Path:
    """Download a published checkpoint to the cache, unless it is there, and verify its SHA-256 if known.

    Raises LoraCompError for an unknown name, a checkpoint that cannot be downloaded, or a wrong SHA-256.
    """
    entry = find(name)
    if entry.url is None:
        raise LoraCompError(f"no checkpoint of {name} was published; see {entry.page}")
    if urlparse(entry.url).hostname in BROWSER_ONLY:
        raise LoraCompError(f"{name} needs a browser: download {entry.url}, then run `lora-comp import FILE`")
    path = make_folder(cache()) / Path(urlparse(entry.url).path).name
    if not path.exists():
        _fetch(entry.url, path, entry.sha256)
    elif entry.sha256 and not digest(path).startswith(entry.sha256):
        raise LoraCompError(f"{path} is not the published file (SHA-256 {entry.sha256}...); delete it and try again")
    return path


def _fetch(url: str, path: Path, sha256: str | None) -> None:
    from rich.progress import DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    received = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=30) as answer,
            open(unfinished, "wb") as file,
            Progress(TextColumn("{task.description}"), DownloadColumn(), TimeRemainingColumn(), transient=True) as bar,
        ):
            size = int(answer.headers.get("Content-Length") or 0)
            task = bar.add_task(path.name, total=size or None)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                received.update(chunk)
                bar.advance(task, len(chunk))
            if size and file.tell() != size:
                raise OSError(f"connection lost after {file.tell()} of {size} bytes")
        if sha256 and not received.hexdigest().startswith(sha256):
            raise LoraCompError(
                f"{url} is not the published file: its SHA-256 is {received.hexdigest()}, not {sha256}; try again"
            )
        os.replace(unfinished, path)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise LoraCompError(f"cannot download {url} ({reason}); without a network, copy the file to {path}") from None
    finally:
        unfinished.unlink(missing_ok=True)
