"""What must survive compression: one file per task.

A task has
    name                            str
    key                             name and network, under which pre-trained adapters are stored: "cls-scenes"
    metrics                         names of what it measures, the score first; higher is better for the score
    to(device)                      moves its network; returns itself
    targets(original)               what is needed of the originals (B, 3, H, W), computed once, without gradient
    distortion(decoded, targets)    (B,), differentiable in decoded (B, 3, H, W)
    loss(decoded, original)         scalar, the mean of the distortion
    weight(quality)                 float: the objective of an image is weight(quality) * distortion + bpp
    lr                              float: the learning rate of test-time fine-tuning
    answer(image)                   the network's answer on (3, H, W) in a word or two, or None
    measure(decoded, sample)        metric -> float, for one decoded image (3, H, W) in [0, 1]; always has "score"
and, where the score of a data set is not the mean of its images' scores (mAP is not),
    pool(objects)                   metric -> float of the data set, from what `measure` returned of each image as
                                    "objects", which must be plain enough for JSON
and, where the network is a detector, whose objects may serve as regions of interest,
    detections(image)               list of the objects in (3, H, W) in COCO's format, with "bbox" and "score"
    score_threshold                 float: the score from which a detection counts
and, where the score depends on the names of a data set's classes,
    labels                          the `labels.Labels` that finds them among its network's
    notes(data, sample)             lines that say what the score of the data set with that name and such samples leaves
                                    out, or is instead
"""

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_comp.errors import LoraCompError
from lora_comp.settings import REQUIRED, NoOptions, setting
from lora_comp.tasks.cls import Classification
from lora_comp.tasks.det import Detection
from lora_comp.tasks.human import Human
from lora_comp.tasks.multi import MultiTask, MultiTaskOptions, of_each_network
from lora_comp.tasks.open import Open
from lora_comp.tasks.seg import Segmentation

TASKS: dict[str, Any] = {"human": Human, "cls": Classification, "det": Detection, "seg": Segmentation, "open": Open}


@dataclass(frozen=True)
class OwnOptions:
    name: str = setting(REQUIRED, "MODULE:CLASS of a task of your own, see docs/tasks.md")


def choices() -> dict[str, Any]:
    """What can be set of each task: what its class has as `options`, if anything."""
    return {name: getattr(task, "options", NoOptions) for name, task in TASKS.items()} | {"own": OwnOptions}


def combine(parts: Mapping[str, Any]) -> MultiTaskOptions:
    """What can be set of several tasks as one."""
    return MultiTaskOptions(dict(parts))


@torch.inference_mode(False)
def load_task(name: str, parts: Mapping[str, Mapping] | None = None, shares: Sequence[float] | None = None, **options):
    """A task by name, ready to use: "human"; "cls", "det" and "seg" (options network, weights, classes); "open"
    (network, weights, layers, input); "MODULE:CLASS", a class in an importable module; or several under any name, with
    the options of each part, `parts={"cls": {}, "human": {}}`, and their shares (see `tasks.multi.MultiTask`).

    Where `network` is a list, each network is a task, which together are one with their shares; `input` is then a
    list of the same length, or of all alike.
    Raises LoraCompError for an unknown task, option or network.
    """
    if isinstance(options.get("network"), (list, tuple)):
        parts = of_each_network(name, **options)
        if len(parts) == 1 and shares is None:
            [own] = parts.values()
            return load_task(**own)
    if parts:
        return MultiTask({part: load_task(**{"name": part, **given}) for part, given in parts.items()}, shares)
    made = TASKS.get(name) or (_own(name) if ":" in name else None)
    if made is None:
        raise LoraCompError(f"unknown task {name!r}; known are {', '.join(TASKS)}, and MODULE:CLASS for your own")
    known = list(inspect.signature(made).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise LoraCompError(f"the task {name!r} takes {' and '.join(known) or 'no options'}, not {', '.join(unknown)}")
    return made(**options)


def _own(name: str) -> Any:
    module, _, kind = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise LoraCompError(f"the task {name!r} cannot be loaded: {error}") from None
