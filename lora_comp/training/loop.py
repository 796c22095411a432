"""The training loop: a budget in steps or minutes, regular checkpoints, and exact resumption.

Step i draws its data and noise from a generator seeded by (seed, i), so the state of a training consists of the
weights, the optimiser, the running means of the metrics, and i.
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

from lora_comp.errors import LoraCompError
from lora_comp.training import parallel

CHECKPOINT_SECONDS = 300
SMOOTH = 0.98  # decay of the running means of metrics


def cosine(progress: float, warmup: float = 0.02, last: float = 0.01) -> float:
    """Factor of the learning rate: linear warm-up, then cosine decay from 1 to `last`. progress, warmup: in [0, 1]."""
    if progress < warmup:
        return progress / warmup
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def save_atomically(path: Path, content: dict) -> None:
    """Write a checkpoint; an interruption leaves the previous one in place."""
    torch.save(content, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def tensorboard(folder: Path, done: int):
    """A TensorBoard writer from step `done` on, or None if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("curves go to curve.csv; for TensorBoard: pip install 'lora_comp[train]'")
        return None
    return SummaryWriter(folder, purge_step=done)


class Record:
    """State of a training; the first process writes it to checkpoint.pt, curve.csv and TensorBoard in `folder`."""

    def __init__(self, folder: Path, parts: dict):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.parts, self.board = folder, parts, None
        self.done, self.seconds, self.mean = 0, 0.0, dict[str, float]()
        if (folder / "checkpoint.pt").exists():
            stored = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
            try:
                for name, part in parts.items():
                    part.load_state_dict(stored[name])
            except (KeyError, ValueError, RuntimeError):
                raise LoraCompError(
                    f"{folder / 'checkpoint.pt'} is that of another training: remove it, or set work=FOLDER"
                ) from None
            self.done, self.seconds, self.mean = stored["steps"], stored["seconds"], stored.get("mean", {})
        if parallel.rank() == 0:
            self.board = tensorboard(folder, self.done)

    def add(self, metrics: dict[str, float]) -> None:
        """Count a step and its metrics."""
        self.done += 1
        finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
        self.mean |= {k: SMOOTH * self.mean.get(k, v) + (1 - SMOOTH) * v for k, v in finite.items()}
        self._draw(metrics)

    def write(self, seconds: float, validate: Callable[[], dict[str, float]] | None) -> dict:
        """Write a checkpoint and a line of curve.csv; returns that line."""
        line = {"steps": self.done, "minutes": seconds / 60, **self.mean}
        if parallel.rank() > 0:
            return line
        save_atomically(
            self.folder / "checkpoint.pt",
            {k: p.state_dict() for k, p in self.parts.items()}
            | {"steps": self.done, "seconds": seconds, "mean": self.mean},
        )
        validation = validate() if validate else {}
        self._draw(validation)
        line |= validation
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
    """Run `step` until the budget is spent, resuming from the checkpoint in `folder` if there is one.

    Args:
        folder: receives checkpoint.pt, curve.csv with a line of mean metrics per checkpoint, and TensorBoard files if
            TensorBoard is installed.
        parts: modules and optimisers by name, the content of a checkpoint.
        step: called with the index of the step and the progress in [0, 1); makes one update and returns its metrics.
        steps, minutes: the budget, exactly one of them. `minutes` includes earlier runs.
        validate: called at every checkpoint; returns metrics.
    Returns:
        The last line of curve.csv: steps, minutes and metrics.
    """
    if (steps is None) == (minutes is None):
        raise ValueError("give the budget in steps or in minutes, not both")
    record = Record(folder, parts)
    start, saved = time.monotonic() - record.seconds, time.monotonic()
    row: dict[str, float] = {}
    for part in parts.values():
        if isinstance(part, nn.Module):
            parallel.broadcast_weights(part)

    def progress() -> float:
        spent = record.done / steps if steps else (time.monotonic() - start) / (60 * (minutes or 0))
        return parallel.broadcast_value(spent)

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
