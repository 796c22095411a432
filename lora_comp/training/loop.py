"""The loop that every training here runs in: a budget, a checkpoint every few minutes, an exact resume.

Exact, because nothing random outlives a step: step i draws its data and its noise from a generator seeded by
(seed, i), so the state is the weights, the optimiser, the running means of the metrics and i.
"""

import csv
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from lora_comp.training import parallel

CHECKPOINT_SECONDS = 120
SMOOTH = 0.98  # weight of the past in the running mean of the metrics shown


def cosine(progress: float, warmup: float = 0.02, last: float = 0.01) -> float:
    """Factor of the learning rate: linear up to `warmup`, then half a cosine from 1 down to `last`."""
    if progress < warmup:
        return progress / warmup
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def save_atomically(path: Path, content: dict) -> None:
    """Write a checkpoint such that a stop in the middle leaves the one before."""
    torch.save(content, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def tensorboard(folder: Path, done: int):
    """A writer of curves for TensorBoard from step `done` on, or None where that is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("curve.csv has the curves; for TensorBoard's too: pip install 'lora_comp[train]'")
        return None
    return SummaryWriter(folder, purge_step=done)


class Record:
    """What the first process keeps of a training in `folder`: checkpoint.pt, curve.csv and TensorBoard's curves."""

    def __init__(self, folder: Path, parts: dict):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.parts, self.board = folder, parts, None
        self.done, self.seconds, self.mean = 0, 0.0, dict[str, float]()
        if (folder / "checkpoint.pt").exists():
            stored = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
            for name, part in parts.items():
                part.load_state_dict(stored[name])
            self.done, self.seconds, self.mean = stored["steps"], stored["seconds"], stored.get("mean", {})
        if parallel.rank() == 0:
            self.board = tensorboard(folder, self.done)

    def add(self, metrics: dict[str, float]) -> None:
        """Count a step and its metrics."""
        self.done += 1
        self.mean = {k: SMOOTH * self.mean.get(k, v) + (1 - SMOOTH) * v for k, v in metrics.items()}
        self._draw(metrics)

    def write(self, seconds: float, validate: Callable[[], dict[str, float]] | None) -> dict:
        """Make a checkpoint and a line of the curve, and return that line."""
        line = {"steps": self.done, "minutes": seconds / 60, **self.mean}
        if parallel.rank() > 0:
            return line
        save_atomically(
            self.folder / "checkpoint.pt",
            {k: p.state_dict() for k, p in self.parts.items()}
            | {"steps": self.done, "seconds": seconds, "mean": self.mean},
        )
        reached = validate() if validate else {}
        self._draw(reached)
        line |= reached
        new = not (self.folder / "curve.csv").exists()
        with open(self.folder / "curve.csv", "a", newline="") as file:
            writer = csv.DictWriter(file, list(line))
            if new:
                writer.writeheader()
            writer.writerow({k: round(v, 6) for k, v in line.items()})
        return line

    def _draw(self, values: dict[str, float]) -> None:
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, self.done)

    def close(self) -> None:
        if self.board:
            self.board.close()


def fit(
    folder: Path,
    parts: dict,
    step: Callable[[int, float], dict[str, float]],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    validate: Callable[[], dict[str, float]] | None = None,
    title: str = "train",
) -> dict:
    """Run `step` until the budget is spent, from where the checkpoint in `folder` left off.

    Args:
        folder: gets checkpoint.pt, curve.csv with one line of mean metrics per checkpoint, and, where TensorBoard is
            installed, its files.
        parts: name to module or optimiser, all that a checkpoint holds.
        step: called with the index of the step and the progress in [0, 1); makes one update, returns its metrics.
        steps, minutes: the budget, one of the two. With `minutes` the time of earlier runs counts.
        validate: called at every checkpoint.
    Returns:
        The last line of curve.csv with `steps` and `minutes`.
    """
    if (steps is None) == (minutes is None):
        raise ValueError("give a budget either in steps or in minutes")
    record = Record(folder, parts)
    start, saved = time.monotonic() - record.seconds, time.monotonic()
    row: dict[str, float] = {}
    for part in parts.values():
        if isinstance(part, nn.Module):
            parallel.alike(part)

    def progress() -> float:
        spent = record.done / steps if steps else (time.monotonic() - start) / (60 * (minutes or 0))
        return parallel.of_first(spent)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn() if steps else TextColumn(""),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
    )
    with Progress(*columns, disable=parallel.rank() > 0) as bar:
        shown = bar.add_task(title, total=steps or 1.0, completed=record.done, metrics="")
        try:
            while (now := progress()) < 1:
                torch.manual_seed((seed * 1_000_003 + record.done) * parallel.size() + parallel.rank())
                record.add(step(record.done, now))
                text = " ".join(f"{k} {v:.4g}" for k, v in record.mean.items())
                bar.update(shown, completed=record.done if steps else min(now, 1), metrics=text)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    row, saved = record.write(time.monotonic() - start, validate), time.monotonic()
        finally:
            if not row or row["steps"] != record.done:
                row = record.write(time.monotonic() - start, validate)
            record.close()
    return row
