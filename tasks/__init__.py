"""What must survive compression: one file per task.

A task has
    name                            str
    key                             name and network, by which pre-trained adapters are found: "cls-scenes"
    metrics                         names of what it measures, the score first; higher is better for the score
    to(device)                      itself, its network moved
    targets(original)               what is kept of the originals (B, 3, H, W), computed once, without gradient
    distortion(decoded, targets)    (B,), differentiable in decoded (B, 3, H, W)
    loss(decoded, original)         scalar, the mean of the distortion
    weight(quality)                 float: the objective of a picture is weight(quality) * distortion + bpp
    lr                              float: the step size of fine-tuning that suits its objective
    answer(picture)                 what the network says of (3, H, W) in a word or two, or None
    measure(decoded, sample)        metric -> float, for one decoded picture (3, H, W) in [0, 1]; "score" is always
                                    among them
and, where the score of several pictures is not the mean of their scores, as mAP is not,
    pool(objects)                   metric -> float of pictures together, from what `measure` gave of each as "objects",
                                    plain enough for JSON
"""

import inspect

from lora_comp.errors import LoraCompError
from lora_comp.tasks.cls import Classification
from lora_comp.tasks.det import Detection
from lora_comp.tasks.human import Human
from lora_comp.tasks.seg import Segmentation

TASKS = {"human": Human, "cls": Classification, "det": Detection, "seg": Segmentation}


def load_task(name: str, **options) -> Human | Classification | Detection:
    """A task by name, ready to use: "human", or "cls", "det" and "seg" (options network, weights).

    Raises LoraCompError for an unknown task, option or network.
    """
    if name not in TASKS:
        raise LoraCompError(f"unknown task {name!r}; known are {', '.join(TASKS)}")
    known = list(inspect.signature(TASKS[name]).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise LoraCompError(f"the task {name!r} takes {' and '.join(known) or 'no options'}, not {', '.join(unknown)}")
    return TASKS[name](**options)
