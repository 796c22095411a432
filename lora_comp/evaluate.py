"""Evaluation of methods on a data set: every image is encoded to a file, decoded from it and scored.

The output folder holds files/**/*.lcz, records.jsonl (a line per scored file, from which an interrupted run resumes)
and results.json. `bytes` of a record is the size of the file that was decoded for it.
"""

import json
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from lora_comp import api, bitstream
from lora_comp.data import Sample
from lora_comp.errors import ImageError, LoraCompWarning
from lora_comp.files import make_folder, short_name, write_file
from lora_comp.methods import NONE, FitSettings, Method, steps_of
from lora_comp.report.summary import group_of, summary
from lora_comp.roi import region, weighted_psnr
from lora_comp.target import Target, missed
from lora_comp.tasks.human import psnr
from lora_comp.tasks.labels import Labels


@dataclass(frozen=True)
class Point:
    """A codec at one rate point, and the methods to evaluate on it; None stands for the plain codec.

    target: what every file has to meet, in place of the quality of a codec of variable rate.
    """

    codec: Any
    methods: Sequence[Method | None]
    target: Target | None = None


class Records:
    """The records of a folder. A line of records.jsonl is valid while its file exists with the recorded size.

    pool: the task's `pool`, if it has one. Its input, "objects" of `measure`, is stored in records.jsonl only.
    skipped: index of an image to the reason why it was skipped.
    notes: what of the data is not read or not scored, and what a score is where it is not what the task's name says.
    requested: the records of this run.
    by_key: all valid records, by `record_key`.
    """

    def __init__(self, out: Path, pool: Callable[[list[dict]], dict[str, float]] | None = None):
        self.out, self.pool = out, pool
        self.skipped: dict[int, str] = {}
        self.notes: list[str] = []
        self.requested: list[dict] = []
        self.journal = out / "records.jsonl"
        self.by_key: dict[str, dict] = {}
        if not self.journal.exists():
            return
        entries = [entry for entry in map(_parse, self.journal.read_text().splitlines()) if entry]
        latest = {
            entry["record"]["file"]: entry for entry in entries
        }  # the file may have been overwritten under other settings
        for file, entry in latest.items():
            if (out / file).exists() and (out / file).stat().st_size == entry["record"]["bytes"]:
                self.by_key[entry["key"]] = entry["record"]
        write_file(self.journal, "".join(_line(key, record) for key, record in self.by_key.items()).encode())

    def add(self, key: str, record: dict) -> None:
        with open(self.journal, "a") as file:
            file.write(_line(key, record))
        self.by_key[key] = record

    def tell(self, notes: list[str]) -> None:
        self.notes += notes
        for line in notes:
            print(f"note: {line}", file=sys.stderr)

    def results(self) -> dict:
        """The content of results.json: the records of this run, their means, why images were skipped, and notes."""
        records = [{name: value for name, value in record.items() if name != "objects"} for record in self.requested]
        rows = summary(records)
        if self.pool:
            for row in rows:
                row |= self.pool([r["objects"] for r in self.requested if group_of(r) == group_of(row)])
        skipped = list(self.skipped.values())
        return {"records": records, "summary": rows, "skipped": skipped, "notes": self.notes}

    def write(self) -> None:
        write_file(self.out / "results.json", json.dumps(self.results(), indent=1).encode())


def _line(key: str, record: dict) -> str:
    return json.dumps({"key": key, "record": record}) + "\n"


def _parse(line: str) -> dict | None:
    """An entry of the journal; None for an incomplete line."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def samples(data, on_skip: Callable[[int, str], None] = lambda index, reason: None) -> Iterator[Sample]:
    """The readable images of a data set; `on_skip` is called with the index of each other one and the reason."""
    for i in range(len(data)):
        try:
            sample = data[i]
        except ImageError as error:
            on_skip(i, str(error))
            continue
        classes = getattr(data, "classes", ())
        yield replace(sample, classes=classes) if classes and not sample.classes else sample


def notes(data: Any, task: Any, sample: Sample) -> list[str]:
    """What is to be said before the images of a data set are coded, of which `sample` is one: a line each."""
    say = getattr(task, "notes", None)
    said = say(getattr(data, "name", "the data"), sample) if callable(say) else []
    return [*getattr(data, "notes", ()), *said]


def batches(images: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Batches of at most `size` consecutive images of equal shape."""
    for _, group in groupby(images, key=lambda sample: sample.image.shape):
        while batch := list(islice(group, size)):
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
    """Evaluate every method of every rate point on every image.

    Args:
        data: a data set of `lora_comp.data`.
        out: output folder; results that it already holds are not computed again.
        progress: a started rich Progress.
        batch: number of images of equal size to encode together; it affects results only by rounding.
        roi: region of interest, see `roi.region`.
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
                if not records.requested:
                    records.tell(notes(data, task, together[0]))
                for method in point.methods:
                    keys = [record_key(s, point.codec, task, method, settings, roi, point.target) for s in together]
                    missing = {k: s for k, s in zip(keys, together, strict=True) if k not in records.by_key}
                    progress.reset(steps, total=steps_of(method, settings.steps))
                    scored = score(list(missing.values()), point, task, method, settings, out, roi, on_step)
                    for key, record in zip(missing, scored, strict=True):
                        records.add(key, record)
                    records.requested += [records.by_key[key] for key in keys]
                progress.advance(images, len(together))
            progress.update(images, completed=len(data) * (done + 1))
    finally:
        if records.requested or records.skipped:
            records.tell(missed(records.requested))
            records.write()
    return records


def record_key(
    sample: Sample,
    codec: Any,
    task: Any,
    method: Method | None,
    settings: FitSettings,
    roi: str | None = None,
    target: Target | None = None,
) -> str:
    """Everything that a record depends on, as JSON."""
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
    if relabelled := _relabelled(task, sample):
        facts["classes"] = relabelled
    if target is not None:
        facts["target"] = str(target)
    if method is not None:
        facts["method"] = [method.name, method.identity and method.identity.hex(), dict(method.settings)]
    return json.dumps(facts, sort_keys=True)


def _relabelled(task: Any, sample: Sample) -> dict[str, Any]:
    """For each task that finds the sample's classes among those of a network, under other indices than the sample's,
    these indices."""
    if sample.label is None and not sample.annotated:
        return {}
    parts = {name: getattr(part, "labels", None) for name, part in getattr(task, "parts", {"": task}).items()}
    found = {name: labels.relabelled(sample.classes) for name, labels in parts.items() if isinstance(labels, Labels)}
    return {name: indexes for name, indexes in found.items() if indexes is not None}


def score(
    batch: Sequence[Sample],
    point: Point,
    task: Any,
    method: Method | None,
    settings: FitSettings,
    out: Path,
    roi: str | None,
    on_step: Callable[[int, float], None],
) -> Iterator[dict]:
    """Encode images of one size together, decode their files and score them: yields a record for each.

    seconds_encode is the time of the batch over the number of images.
    """
    if not batch:
        return
    start = time.perf_counter()
    rois = None if roi is None else [region(roi, sample.image, task) for sample in batch]
    images = [sample.image for sample in batch]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LoraCompWarning)  # `missed` says it of all images in a line
        coded = api.encode_images(images, point.codec, task, method, settings, rois, on_step, target=point.target)
    seconds = (time.perf_counter() - start) / len(batch)
    for i, (sample, one) in enumerate(zip(batch, coded, strict=True)):
        yield record_of(sample, one, point, task, method, out, rois[i] if rois else None) | {"seconds_encode": seconds}


def file_of(image: str, what: str) -> Path:
    """The path of an image's file below the output folder. A name that leads out of its folder stays inside."""
    parts = ["_" if part == ".." or Path(part).is_absolute() else part for part in Path(image).parts]
    *folders, last = parts or ["_"]
    return Path("files", *map(short_name, folders), short_name(f"{last}-{what}.lcz"))


def record_of(
    sample: Sample,
    coded: api.Coded,
    point: Point,
    task: Any,
    method: Method | None,
    out: Path,
    roi: Tensor | None = None,
) -> dict:
    """Write the file of an image, decode it and score the result."""
    name, codec = NONE if method is None else method.name, point.codec
    rate = f"q{coded.quality:g}" if point.target is None else str(point.target)
    path = file_of(sample.name, f"{task.name}-{codec.name}-{rate}-{name}")
    make_folder((out / path).parent)
    write_file(out / path, coded.data)
    data = (out / path).read_bytes()
    start = time.perf_counter()
    decoded = api.decode(data, codec, method).cpu()
    seconds_decode = time.perf_counter() - start
    _, height, width = sample.image.shape
    inside = {} if roi is None else {"psnr_roi": weighted_psnr(decoded, sample.image, roi), "roi": float(roi.mean())}
    return {
        "image": sample.name,
        "height": height,
        "width": width,
        "task": task.name,
        "method": name,
        "codec": codec.name,
        "quality": coded.quality,
        **({} if point.target is None else {"target": rate}),
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
