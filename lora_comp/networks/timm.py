"""timm's classifiers by name, and the stages that timm itself lists for each."""

import math
import os
import sys
from collections.abc import Sequence

from torch import nn

from lora_comp.errors import LoraCompError
from lora_comp.networks.checkpoints import load_checkpoint, no_weights
from lora_comp.networks.external import LEAST_SIDE, Source
from lora_comp.networks.imagenet import imagenet_names
from lora_comp.networks.input import Input
from lora_comp.networks.taps import Modules

STAGES = 4


def read(name: str, weights: str | os.PathLike | None) -> Source:
    import timm

    kind = name.partition("/")[2]
    published = weights == "default"
    if not timm.is_model(kind.split(".")[0]):
        raise LoraCompError(f"timm has no model {kind!r}; timm.list_models() names those it has")
    try:
        model = timm.create_model(kind, pretrained=published)
    except (OSError, RuntimeError) as error:
        raise no_weights(name, error) from error
    if weights is not None and not published:
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        classes: int = getattr(model, "num_classes", 0) or 1000  # type: ignore[assignment]
        model = load_checkpoint(
            model, weights, lambda count: timm.create_model(kind, num_classes=count), convert, classes
        )
    facts: dict = model.pretrained_cfg  # type: ignore[assignment]
    height, width = facts["input_size"][1:]
    own = Input((height, width) if facts["fixed_input_size"] else None, mean=facts["mean"], std=facts["std"])
    return Source(
        Modules(model),
        own,
        stages=stages(model),
        classifier=bool(model.num_classes),  # 0 for those that are published as backbones, such as DINOv3's
        least_side=max(LEAST_SIDE, *(facts.get("min_input_size") or (0,))[-2:]),
        usual=(height, width),
        names=class_names(model, facts),
    )


def class_names(model: nn.Module, facts: dict) -> Sequence[tuple[str, ...]]:
    """The names of a model's classes: those of its configuration, or of the ImageNet that has as many."""
    count: int = model.num_classes  # type: ignore[assignment]
    own = facts.get("label_names") or ()
    about = facts.get("label_descriptions") or {}
    if len(own) == count:
        return [(str(name), *([str(about[name])] if isinstance(about, dict) and name in about else [])) for name in own]
    return imagenet_names(count)


def stages(model: nn.Module) -> list[str]:
    """Names of the modules at whose ends timm takes features (`feature_info`), at most four, from stride 4 on: the last
    of each stride, or evenly spaced ones of a network of one stride, such as a ViT."""
    info = getattr(model, "feature_info", None) or []
    listed = [one for one in getattr(info, "info", info) if one.get("module") and one["reduction"] >= 4]
    every = [one["module"].replace("block.", "blocks.") for one in listed]  # timm's own slip of the pen, of twins
    last = list({one["reduction"]: name for one, name in zip(listed, every, strict=True)}.values())
    if len(set(every)) <= STAGES:  # one may be listed for each of its branches
        return list(dict.fromkeys(every))
    if len(last) >= STAGES - 1:
        return last[-STAGES:]
    return [every[math.ceil(len(every) * quarter / STAGES) - 1] for quarter in range(1, STAGES + 1)]
