"""Several tasks at once: one file that serves them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_comp.data.sample import Sample
from lora_comp.errors import LoraCompError
from lora_comp.settings import setting

MIDDLE = 2  # the rate point whose weights tell how much one part counts against another


@dataclass(frozen=True)
class MultiTaskOptions:
    parts: dict[str, Any]
    shares: list[float] | None = setting(None, "how much each task counts, as [3,1]; null: all alike", low=0)


class Several:
    """The objective is the mean of the parts' objectives, each by its share:

        sum over i of  share_i x weight_i x distortion_i  + bpp

    where, so that a distortion need not know the rate point, weight_i / weight_0 is that of quality 2 at all of them.
    The score is the first part's. Every figure of a part comes besides under its name: "det_mAP".

    parts: tasks by name. shares: of each part, from 0 on, of which only the proportion counts; None for equal ones. A
    part whose share is 0 is measured and does not steer.
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
        self.steering = {name: task for name, task in self.parts.items() if self.shares[name]}
        equal = len(set(given)) == 1
        self.name = "+".join(("" if equal else f"{self.shares[name]:.2g}") + name for name in self.parts)
        most_first = sorted(self.parts, key=lambda name: -self.shares[name])
        self.key = "+".join(self.parts[name].key for name in most_first)
        self.lr = sum(self.shares[name] * task.lr for name, task in self.parts.items())
        self.metrics = ("score", *(f"{name}_{figure}" for name, task in self.parts.items() for figure in task.metrics))
        if any(hasattr(task, "pool") for task in self.parts.values()):
            self.pool = self._pool
        finder = next((task for task in self.parts.values() if hasattr(task, "found")), None)
        if finder:
            self.found, self.sure = finder.found, finder.sure

    def to(self, device: torch.device) -> "Several":
        for task in self.parts.values():
            task.to(device)
        return self

    def targets(self, original: Tensor) -> dict[str, Any]:
        return {name: task.targets(original) for name, task in self.steering.items()}

    def distortion(self, decoded: Tensor, targets: dict[str, Any]) -> Tensor:
        total = torch.zeros(len(decoded), device=decoded.device)  # (B,)
        for name, task in self.steering.items():
            against_first = task.weight(MIDDLE) / self.first.weight(MIDDLE)
            total = total + self.shares[name] * against_first * task.distortion(decoded, targets[name]).float()
        return total

    def loss(self, decoded: Tensor, original: Tensor) -> Tensor:
        return self.distortion(decoded, self.targets(original)).mean()

    def weight(self, quality: int) -> float:
        return self.first.weight(quality)

    def answer(self, image: Tensor) -> str | None:
        answers = [task.answer(image) for task in self.parts.values()]
        return "; ".join(answer for answer in answers if answer) or None

    def measure(self, decoded: Tensor, sample: Sample) -> dict:
        measured = {name: task.measure(decoded, sample) for name, task in self.parts.items()}
        objects = {name: one.pop("objects") for name, one in measured.items() if "objects" in one}
        return self._named(measured) | ({"objects": objects} if objects else {})

    def _named(self, measured: Mapping[str, dict[str, float]]) -> dict[str, float]:
        named = {
            f"{name}_{figure}": value
            for name, one in measured.items()
            for figure, value in one.items()
            if figure != "score"
        }  # which each task tells under another name too
        first = next(iter(self.parts))
        return ({"score": measured[first]["score"]} if first in measured else {}) | named

    def _pool(self, objects: Sequence[dict]) -> dict[str, float]:
        return self._named({name: self.parts[name].pool([one[name] for one in objects]) for name in objects[0]})
