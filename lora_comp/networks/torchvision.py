"""torchvision's networks by name: its classifiers, and for task=open its segmenters, detectors and others too."""

import os
import re

import torchvision
from torch import nn

from lora_comp.errors import LoraCompError
from lora_comp.networks.checkpoints import load_checkpoint, no_weights
from lora_comp.networks.external import LEAST_SIDE, Source
from lora_comp.networks.imagenet import imagenet_names
from lora_comp.networks.input import MEAN, STD, Input
from lora_comp.networks.taps import Modules


def _renamed(state: dict, model: nn.Module) -> dict:
    """The published DenseNets have "norm.1" for "norm1"."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): value for key, value in state.items()}


def read(name: str, weights: str | os.PathLike | None) -> Source:
    kind = name.partition("/")[2]
    published = weights == "default"
    if kind not in torchvision.models.list_models():
        raise LoraCompError(f"torchvision has no model {kind!r}; torchvision.models.list_models() names those it has")
    classifier = kind in torchvision.models.list_models(torchvision.models)
    options: dict = {"init_weights": True} if kind in ("googlenet", "inception_v3") else {}
    if not classifier and not published:
        options = {"weights_backbone": None}  # or it would be downloaded
    try:
        model = torchvision.models.get_model(kind, weights="DEFAULT" if published else None, **options)
    except (OSError, RuntimeError) as error:
        raise no_weights(name, error) from error
    counts = []  # of classes, where a checkpoint has its own

    def with_classes(count: int):
        counts.append(count)
        return torchvision.models.get_model(kind, num_classes=count, **options)

    if weights is not None and not published:
        model = load_checkpoint(model, weights, with_classes, _renamed)
    side = getattr(model, "image_size", None)  # of a ViT, which takes no other
    own = Input((side, side) if side else None, mean=MEAN, std=STD)
    if not classifier:
        return Source(Modules(model), own)
    facts = torchvision.models.get_model_weights(kind)["DEFAULT"]
    crop = facts.transforms().crop_size
    names = imagenet_names(counts[-1] if counts else len(facts.meta["categories"]))
    usual = (crop[0], crop[-1])
    return Source(Modules(model), own, classifier=True, least_side=LEAST_SIDE, usual=usual, names=names)
