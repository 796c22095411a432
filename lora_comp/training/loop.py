"""The loop that every training here runs in: a budget, a checkpoint every few minutes, an exact resume.

Exact, because nothing random outlives a step: step i draws its data and its noise from a generator seeded by
(seed, i), so the state is the weights, the optimiser and i.
"""
import csv
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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


def fit(
    folder: Path, parts: dict, step: Callable[[int, float], dict[str, float]], *, steps: int | None = None,
    minutes: float | None = None, seed: int = 0, validate: Callable[[], dict[str, float]] | None = None,
    checkpoint_seconds: float = 120, title: str = "train",
) -> dict:
    """Run `step` until the budget is spent, from where the checkpoint in `folder` left off.

    Args:
        folder: gets checkpoint.pt and curve.csv, one line of mean metrics per checkpoint.
        parts: name to module or optimiser, all that a checkpoint holds.
        step: called with the index of the step and the progress in [0, 1); makes one update, returns its metrics.
        steps, minutes: the budget, one of the two. With `minutes` the time of earlier runs counts.
        validate: called at every checkpoint.
    Returns:
        The last line of curve.csv with `steps` and `minutes`.
    """
    if (steps is None) == (minutes is None):
        raise ValueError("give a budget either in steps or in minutes")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    done, spent = 0, 0.0
    if path.exists():
        stored = torch.load(path, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(stored[name])
        done, spent = stored["steps"], stored["seconds"]
    start, saved = time.monotonic() - spent, time.monotonic()
    mean: dict[str, float] = {}
    row: dict[str, float] = {}

    def progress() -> float:
        return done / steps if steps else (time.monotonic() - start) / (60 * (minutes or 0))

    def checkpoint() -> dict:
        seconds = time.monotonic() - start
        save_atomically(path, {k: p.state_dict() for k, p in parts.items()} | {"steps": done, "seconds": seconds})
        line = {"steps": done, "minutes": seconds / 60, **mean, **(validate() if validate else {})}
        new = not (folder / "curve.csv").exists()
        with open(folder / "curve.csv", "a", newline="") as file:
            writer = csv.DictWriter(file, list(line))
            if new:
                writer.writeheader()
            writer.writerow({k: round(v, 6) for k, v in line.items()})
        return line

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn() if steps else TextColumn(""),
               TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}"))
    with Progress(*columns) as bar:
        shown = bar.add_task(title, total=steps or 1.0, completed=done, metrics="")
        try:
            while (now := progress()) < 1:
                torch.manual_seed(seed * 1_000_003 + done)
                metrics = step(done, now)
                done += 1
                mean = {k: SMOOTH * mean.get(k, v) + (1 - SMOOTH) * v for k, v in metrics.items()}
                text = " ".join(f"{k} {v:.4g}" for k, v in mean.items())
                bar.update(shown, completed=done if steps else min(now, 1), metrics=text)
                if time.monotonic() - saved > checkpoint_seconds:
                    row, saved = checkpoint(), time.monotonic()
        finally:
            if not row or row["steps"] != done:
                row = checkpoint()
    return row
