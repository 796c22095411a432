"""Several tasks at once: one file that serves them all."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_comp.data.sample import Sample
from lora_comp.errors import LoraCompError
from lora_comp.settings import setting

MIDDLE = 2  # the rate point whose weights set how much one part counts against another


@dataclass(frozen=True)
class MultiTaskOptions:
    parts: dict[str, Any]
    shares: list[float] | None = setting(None, "how much each task counts, as [3,1]; null: all alike", low=0)


def of_each_network(task: str, network: Sequence[str | os.PathLike], input: Any = None, **options) -> dict[str, dict]:
    """The options of `task` with each of several networks, by the networks' names: the `parts` of `load_task`.

    input: a list with one for each network, or what is the same for all.
    """
    inputs = input if isinstance(input, (list, tuple)) else [input] * len(network)
    if len(inputs) != len(network):
        raise LoraCompError(f"task.input must name {len(network)} files, one for each network, not {len(inputs)}")
    if len(network) > 1 and options.get("layers"):
        raise LoraCompError("task.layers names layers of one network; leave it out where task.network names several")
    parts: dict[str, dict] = {}
    for own, settings in zip(network, inputs, strict=True):
        name = Path(own).stem
        name = name if name not in parts else f"{name}{len(parts) + 1}"
        parts[name] = options | {"name": task, "network": own} | ({} if settings is None else {"input": settings})
    return parts


class MultiTask:
    """The objective is the mean of the parts' objectives, each by its share:

        sum over i of  share_i x weight_i x distortion_i  + bpp

    where weight_i / weight_0 is that of quality 2 at every rate point, so that a distortion need not know its rate
    point. The score is the first part's; every metric of a part is reported under its name too: "det_mAP".

    parts: tasks by name. shares: one for each part, >= 0; only their proportion counts; None for equal shares. A part
    with share 0 is measured, but not optimised for.
    """

    def __init__(self, parts: Mapping[str, Any], shares: Sequence[float] | None = None):
        given = [1.0] * len(parts) if shares is None else list(shares)
        if len(given) != len(parts) or min(given, default=0) < 0 or sum(given) <= 0:
            raise LoraCompError(
                f"task.shares must be a number from 0 on for each of {', '.join(parts)}, and not all 0; not {given}"
            )
        self.parts = dict(parts)
        self.shares = {name: share / sum(given) for name, share in zip(parts, given, strict=True)}
        self.first = next(iter(self.parts.values()))
        self.optimised = {name: task for name, task in self.parts.items() if self.shares[name]}
        equal = len(set(given)) == 1
        self.name = "+".join(("" if equal else f"{self.shares[name]:.2g}") + name for name in self.parts)
        most_first = sorted(self.parts, key=lambda name: -self.shares[name])
        self.key = "+".join(self.parts[name].key for name in most_first)
        self.lr = sum(self.shares[name] * task.lr for name, task in self.parts.items())
        self.metrics = ("score", *(f"{name}_{figure}" for name, task in self.parts.items() for figure in task.metrics))
        if any(hasattr(task, "pool") for task in self.parts.values()):
            self.pool = self._pool
        detector = next((task for task in self.parts.values() if hasattr(task, "detections")), None)
        if detector:
            self.detections, self.score_threshold = detector.detections, detector.score_threshold

    def to(self, device: torch.device) -> "MultiTask":
        for task in self.parts.values():
            task.to(device)
        return self

    def targets(self, original: Tensor) -> dict[str, Any]:
        return {name: task.targets(original) for name, task in self.optimised.items()}

    def distortion(self, decoded: Tensor, targets: dict[str, Any]) -> Tensor:
        total = torch.zeros(len(decoded), device=decoded.device)  # (B,)
        for name, task in self.optimised.items():
            against_first = task.weight(MIDDLE) / self.first.weight(MIDDLE)
            total = total + self.shares[name] * against_first * task.distortion(decoded, targets[name]).float()
        return total

    def loss(self, decoded: Tensor, original: Tensor) -> Tensor:
        return self.distortion(decoded, self.targets(original)).mean()

    def weight(self, quality: float) -> float:
        return self.first.weight(quality)

    def answer(self, image: Tensor) -> str | None:
        answers = [task.answer(image) for task in self.parts.values()]
        return "; ".join(answer for answer in answers if answer) or None

    def measure(self, decoded: Tensor, sample: Sample) -> dict:
        measured = {name: task.measure(decoded, sample) for name, task in self.parts.items()}
        objects = {name: one.pop("objects") for name, one in measured.items() if "objects" in one}
        return self._named(measured) | ({"objects": objects} if objects else {})

    def notes(self, data: str, sample: Sample) -> list[str]:
        parts = {name: task.notes(data, sample) for name, task in self.parts.items() if hasattr(task, "notes")}
        return [f"{name}: {note}" for name, notes in parts.items() for note in notes]

    def _named(self, measured: Mapping[str, dict[str, float]]) -> dict[str, float]:
        named = {
            f"{name}_{figure}": value
            for name, one in measured.items()
            for figure, value in one.items()
            if figure != "score"
        }  # every task reports its score under another name too
        first = next(iter(self.parts))
        return ({"score": measured[first]["score"]} if first in measured else {}) | named

    def _pool(self, objects: Sequence[dict]) -> dict[str, float]:
        return self._named({name: self.parts[name].pool([one[name] for one in objects]) for name in objects[0]})
