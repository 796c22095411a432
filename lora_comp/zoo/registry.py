"""What the zoo holds: the weights that ship, with sizes, SHA-256 and scores, and where published checkpoints lie.

`python -m lora_comp.zoo` prints it. registry.json holds the size and the SHA-256 of each file that ships; `write` makes
it. published.json names what others published, as their own READMEs do, with the SHA-256 or its first digits where they
tell them; null where they do not, or where nothing was published.
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
BROWSER_ONLY = ("drive.google.com",)  # hands out a page, not the file


@dataclass(frozen=True)
class Shipped:
    """A file of weights in the package.

    kind: "codecs", "adapters" or "networks".
    bytes, sha256: of the file when the registry was written; `whole` tells whether they still hold.
    card: how it was made; empty where the file is not whole.
    scores: what it reaches, by metric; empty where that has not been measured.
    """

    name: str
    kind: str
    path: Path
    bytes: int
    sha256: str
    whole: bool
    card: dict = field(repr=False)
    scores: dict[str, float]


@dataclass(frozen=True)
class Published:
    """A checkpoint of somebody else's, or an archive of some.

    system: for `lora-comp import`, which may not know it yet. page: where its authors describe it.
    url: of the file, None where none was published. sha256: its first digits at least, None where nobody told.
    """

    name: str
    what: str
    system: str
    page: str
    url: str | None
    sha256: str | None


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    seen = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            seen.update(chunk)
    return seen.hexdigest()


def shipped() -> list[Shipped]:
    """The weights in the package, by kind and name."""
    found = []
    for name, facts in json.loads((zoo.ROOT / "registry.json").read_text()).items():
        path = zoo.ROOT / name
        whole = path.is_file() and digest(path) == facts["sha256"]
        card, scores = _told(path, facts["sha256"]) if whole else ({}, {})
        found.append(Shipped(path.stem, path.parent.name, path, facts["bytes"], facts["sha256"], whole, card, scores))
    return found


def _told(path: Path, sha256: str) -> tuple[dict, dict[str, float]]:
    """How a file of weights was made, and its scores as far as they were measured with it and none before it."""
    if path.parent.name == "networks":
        card = json.loads(path.with_suffix(".json").read_text())
        return card, {k: card[k] for k in ("top1", "mAP", "mask mAP") if k in card}
    card = read_weights(path, path.stem)[1]
    if path.parent.name == "adapters":
        return card, {k: card[k] for k in ("loss", "bpp", "distortion") if k in card}
    measured = path.with_name(f"{card['codec']}.json")
    rows = json.loads(measured.read_text())["curve"] if measured.exists() else []
    return card, next(({"bpp": row["bpp"], "psnr": row["psnr"]} for row in rows if row["sha256"] == sha256), {})


def write() -> None:
    """Make registry.json anew, after weights in the package have changed."""
    files = sorted(zoo.ROOT.rglob("*.safetensors"))
    facts = {
        path.relative_to(zoo.ROOT).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)} for path in files
    }
    write_file(zoo.ROOT / "registry.json", (json.dumps(facts, indent=1) + "\n").encode())


def published() -> list[Published]:
    """The checkpoints of the published systems; of one without files, one entry whose url is None."""
    return list(_published())


def _published() -> Iterator[Published]:
    for family in json.loads((zoo.ROOT / "published.json").read_text()):
        told = {key: family[key] for key in ("what", "system", "page")}
        if not family["files"]:
            yield Published(family["name"], **told, url=None, sha256=None)
        for part, file in family["files"].items():
            yield Published(f"{family['name']}-{part}".rstrip("-"), **told, url=file["url"], sha256=file["sha256"])


def cache() -> Path:
    """The folder of downloads: LORA_COMP_CACHE, or lora_comp in the user's folder of caches."""
    chosen = os.environ.get("LORA_COMP_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_comp"


def find(name: str) -> Published:
    known = {entry.name: entry for entry in published()}
    if name not in known:
        raise LoraCompError(f"there is no published checkpoint {name!r}; `lora-comp zoo` lists them")
    return known[name]


def download(name: str) -> Path:
    """A published checkpoint in the cache, fetched unless it lies there; its checksum is verified where it is known.

    Raises LoraCompError: an unknown name, nothing to fetch, no network, or a file that is not the published one.
    """
    entry = find(name)
    if entry.url is None:
        raise LoraCompError(f"no checkpoint of {name} was published; see {entry.page}")
    if urlparse(entry.url).hostname in BROWSER_ONLY:
        raise LoraCompError(f"{name} is handed to browsers only: open {entry.url}, then `lora-comp import FILE`")
    path = make_folder(cache()) / Path(urlparse(entry.url).path).name
    if not path.exists():
        _fetch(entry.url, path, entry.sha256)
    elif entry.sha256 and not digest(path).startswith(entry.sha256):
        raise LoraCompError(f"{path} is not the published file, whose SHA-256 begins {entry.sha256}; delete it")
    return path


def _fetch(url: str, path: Path, sha256: str | None) -> None:
    from rich.progress import DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    seen = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=30) as answer,
            open(unfinished, "wb") as file,
            Progress(TextColumn("{task.description}"), DownloadColumn(), TimeRemainingColumn(), transient=True) as bar,
        ):
            size = int(answer.headers.get("Content-Length") or 0)
            shown = bar.add_task(path.name, total=size or None)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                seen.update(chunk)
                bar.advance(shown, len(chunk))
            if size and file.tell() != size:
                raise OSError(f"it broke off after {file.tell()} of {size} bytes")
        if sha256 and not seen.hexdigest().startswith(sha256):
            raise LoraCompError(
                f"what {url} gave is not the published file: its SHA-256 is {seen.hexdigest()}, not {sha256}"
            )
        os.replace(unfinished, path)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise LoraCompError(
            f"cannot fetch {url} ({reason}); where there is no network, bring the file to {path}"
        ) from None
    finally:
        unfinished.unlink(missing_ok=True)
