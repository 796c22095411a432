"""What must survive compression: one file per task.

A task has
    name                            str
    key                             name and network, by which pre-trained adapters are found: "cls-scenes"
    metrics                         names of what it measures, the score first; higher is better for the score
    to(device)                      itself, its network moved
    targets(original)               what is kept of the originals (B, 3, H, W), computed once, without gradient
    distortion(decoded, targets)    (B,), differentiable in decoded (B, 3, H, W)
    loss(decoded, original)         scalar, the mean of the distortion
    weight(quality)                 float: the objective of an image is weight(quality) * distortion + bpp
    lr                              float: the step size of fine-tuning that suits its objective
    answer(image)                 what the network says of (3, H, W) in a word or two, or None
    measure(decoded, sample)        metric -> float, for one decoded image (3, H, W) in [0, 1]; "score" is always
                                    among them
and, where the score of several images is not the mean of their scores, as mAP is not,
    pool(objects)                   metric -> float of images together, from what `measure` gave of each as "objects",
                                    plain enough for JSON
and, where the network finds objects, which may then be regions of interest,
    found(image)                  a list of objects in COCO's form, with "bbox" and "score", of (3, H, W)
    sure                            float: the score from which an object counts
"""

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_comp.errors import LoraCompError
from lora_comp.settings import REQUIRED, NoOptions, setting
from lora_comp.tasks.cls import Classification
from lora_comp.tasks.det import Detection
from lora_comp.tasks.human import Human
from lora_comp.tasks.open import Open
from lora_comp.tasks.seg import Segmentation
from lora_comp.tasks.several import MultiTaskOptions, Several

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


def load_task(name: str, parts: Mapping[str, Mapping] | None = None, shares: Sequence[float] | None = None, **options):
    """A task by name, ready to use: "human"; "cls", "det" and "seg" (options network, weights); "open" (network,
    weights, layers, input); "MODULE:CLASS", a task of one's own in a module that can be imported from here; or several
    under any name, with the options of each part, `parts={"cls": {}, "human": {}}`, and their shares (see
    `tasks.several.Several`).

    Raises LoraCompError for an unknown task, option or network.
    """
    if parts:
        return Several({part: load_task(**{"name": part, **given}) for part, given in parts.items()}, shares)
    made = TASKS.get(name) or (_own(name) if ":" in name else None)
    if made is None:
        raise LoraCompError(f"unknown task {name!r}; known are {', '.join(TASKS)}, and MODULE:CLASS for one's own")
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
        raise LoraCompError(f"the task {name!r} cannot be had: {error}") from None
