"""Methods over a data set: every image to files, every file decoded and scored, all in one table.

The folder gets files/**/*.lcz, records.jsonl (a line as soon as a file is scored, from which a second start resumes),
results.json, and what `report` draws of it. Every `bytes` is the size of a file that was decoded for its record.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from lora_comp import api, bitstream
from lora_comp.data import Sample
from lora_comp.errors import ImageError
from lora_comp.files import make_folder, write_file
from lora_comp.methods import NONE, FitSettings, Method
from lora_comp.report.summary import GROUP, summary
from lora_comp.roi import psnr_within, region
from lora_comp.tasks.human import psnr


@dataclass(frozen=True)
class Point:
    """A codec at one rate point, and the methods to evaluate on it; None among them is the plain codec."""

    codec: Any
    methods: Sequence[Method | None]


class Records:
    """The records of a folder. A line in records.jsonl counts while its file is there, of the size it says.

    pool: of the task, where it has one; what `measure` gave it as "objects" is kept in the journal alone.
    """

    def __init__(self, out: Path, pool: Callable[[list[dict]], dict[str, float]] | None = None):
        self.out, self.pool = out, pool
        self.skipped: dict[int, str] = {}
        self.wanted: list[dict] = []
        self.journal = out / "records.jsonl"
        self.known: dict[str, dict] = {}
        if not self.journal.exists():
            return
        entries = [entry for entry in map(_parse, self.journal.read_text().splitlines()) if entry]
        latest = {entry["record"]["file"]: entry for entry in entries}  # other settings may have written it anew
        for file, entry in latest.items():
            if (out / file).exists() and (out / file).stat().st_size == entry["record"]["bytes"]:
                self.known[entry["key"]] = entry["record"]
        write_file(self.journal, "".join(_line(key, record) for key, record in self.known.items()).encode())

    def add(self, key: str, record: dict) -> None:
        with open(self.journal, "a") as file:
            file.write(_line(key, record))
        self.known[key] = record

    def results(self) -> dict:
        """What results.json holds: the records asked for in this start, their means, the images left out."""
        records = [{name: value for name, value in record.items() if name != "objects"} for record in self.wanted]
        rows = summary(records)
        if self.pool:
            for row in rows:
                row |= self.pool([r["objects"] for r in self.wanted if all(r[key] == row[key] for key in GROUP)])
        return {"records": records, "summary": rows, "skipped": list(self.skipped.values())}

    def write(self) -> None:
        write_file(self.out / "results.json", json.dumps(self.results(), indent=1).encode())


def _line(key: str, record: dict) -> str:
    return json.dumps({"key": key, "record": record}) + "\n"


def _parse(line: str) -> dict | None:
    """A line of the journal; None for one that a stop cut short."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def samples(data, on_skip: Callable[[int, str], None] = lambda index, reason: None) -> Iterator[Sample]:
    """The readable images of a data set; `on_skip` is told of the others, and the reason."""
    for i in range(len(data)):
        try:
            sample = data[i]
        except ImageError as error:
            on_skip(i, str(error))
            continue
        yield sample


def batches(found: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Images that follow each other and are of one size, at most `size` together."""
    for _, alike in groupby(found, key=lambda sample: sample.image.shape):
        while batch := list(islice(alike, size)):
            yield batch


def evaluate(
    data: Any,
    points: Sequence[Point],
    task: Any,
    settings: FitSettings,
    out: Path,
    progress: Progress,
    batch: int = 1,
    roi: str | None = None,
) -> Records:
    """Every method of every rate point on every image.

    Args:
        data: a data set of `lora_comp.data`.
        out: the folder for everything; where it holds records already, what they cover is not done again.
        progress: a started rich Progress.
        batch: how many images, if of one size, are coded together; records depend on it in their last digits only.
        roi: the region of interest, see `roi.region`.
    """
    make_folder(out / "files")
    records = Records(out, getattr(task, "pool", None))
    images = progress.add_task("images", total=len(data) * len(points))
    adapts = any(method for point in points for method in point.methods)
    steps = progress.add_task("steps", total=settings.steps, visible=adapts)

    def on_step(step: int, loss: float) -> None:
        progress.update(steps, completed=step)

    def on_skip(index: int, reason: str) -> None:
        if index not in records.skipped:
            progress.console.print(f"skipped: {reason}", soft_wrap=True, markup=False)
        records.skipped[index] = reason

    try:
        for done, point in enumerate(points):
            for together in batches(samples(data, on_skip), batch):
                for method in point.methods:
                    keys = [record_key(sample, point.codec, task, method, settings, roi) for sample in together]
                    missing = {k: s for k, s in zip(keys, together, strict=True) if k not in records.known}
                    progress.reset(steps)
                    scored = score(list(missing.values()), point.codec, task, method, settings, out, roi, on_step)
                    for key, record in zip(missing, scored, strict=True):
                        records.add(key, record)
                    records.wanted += [records.known[key] for key in keys]
                progress.advance(images, len(together))
            progress.update(images, completed=len(data) * (done + 1))
    finally:
        records.write()
    return records


def record_key(
    sample: Sample, codec: Any, task: Any, method: Method | None, settings: FitSettings, roi: str | None = None
) -> str:
    """All that a record depends on, as text."""
    facts = {
        "image": [sample.name, list(sample.image.shape), zlib.crc32(sample.image.numpy().tobytes())],
        "truth": zlib.crc32(sample.boxes.numpy().tobytes())
        if sample.annotated and hasattr(task, "pool")
        else sample.label,
        "codec": [codec.name, codec.quality, codec.hash.hex()],
        "task": [task.name, task.key],
        "roi": roi,
        "settings": {"tile": settings.tile} if method is None else asdict(settings),
    }
    if method is not None:
        facts["method"] = [method.name, method.identity and method.identity.hex(), dict(method.settings)]
    return json.dumps(facts, sort_keys=True)


def score(
    batch: Sequence[Sample],
    codec: Any,
    task: Any,
    method: Method | None,
    settings: FitSettings,
    out: Path,
    roi: str | None,
    on_step: Callable[[int, float], None],
) -> Iterator[dict]:
    """Code images of one size together, decode their files, score what came out: the record of each.

    Its seconds_encode are the image's share of the batch's.
    """
    if not batch:
        return
    start = time.perf_counter()
    rois = None if roi is None else [region(roi, sample.image, task) for sample in batch]
    images = [sample.image for sample in batch]
    coded = api.encode_images(images, codec, task, method, settings, rois, on_step)
    seconds = (time.perf_counter() - start) / len(batch)
    for i, (sample, one) in enumerate(zip(batch, coded, strict=True)):
        yield record_of(sample, one, codec, task, method, out, rois[i] if rois else None) | {"seconds_encode": seconds}


def record_of(
    sample: Sample,
    coded: api.Coded,
    codec: Any,
    task: Any,
    method: Method | None,
    out: Path,
    roi: Tensor | None = None,
) -> dict:
    """Write the file of an image, decode it, and score what came out."""
    name = NONE if method is None else method.name
    path = Path("files") / f"{sample.name}-{task.name}-{codec.name}-q{codec.quality:g}-{name}.lcz"
    make_folder((out / path).parent)
    write_file(out / path, coded.data)
    data = (out / path).read_bytes()
    start = time.perf_counter()
    decoded = api.decode(data, codec, method).cpu()
    seconds_decode = time.perf_counter() - start
    _, height, width = sample.image.shape
    inside = {} if roi is None else {"psnr_roi": psnr_within(decoded, sample.image, roi), "roi": float(roi.mean())}
    return {
        "image": sample.name,
        "height": height,
        "width": width,
        "task": task.name,
        "method": name,
        "codec": codec.name,
        "quality": codec.quality,
        "file": str(path),
        "bytes": len(data),
        "bytes_adapter": bitstream.info(data).get("bytes_adapter", 0),
        "bpp": api.bpp(data, (height, width)),
        **({"psnr": psnr(decoded, sample.image)} if decoded.shape == sample.image.shape else {}),
        "adapted": coded.method != NONE,
        "loss_before": coded.loss_before,
        "loss_after": coded.loss_after,
        "seconds_decode": seconds_decode,
        "threads": torch.get_num_threads(),
        **task.measure(decoded, sample),
        **inside,
    }
