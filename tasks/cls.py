"""For a classifier: distance between the features of the decoded and the original image.

After LoRA_comp (CVPR 2025): the mean over the network's stages of the squared error between features, weighted by
1000 lambda against bits per pixel. Other networks than the published one have features of other magnitudes: their
errors are divided by the variances of the stages (`features.py`).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_comp.data.sample import Sample
from lora_comp.networks import load_network
from lora_comp.settings import setting
from lora_comp.tasks.features import FeatureDistance
from lora_comp.tasks.labels import CLASSES_HELP, HOW, Labels, unmatched
from lora_comp.tasks.rate import rate_lambda

LAMBDAS = (0.0009, 0.0017, 0.0033, 0.006, 0.0115, 0.022)  # published for four rate points, extended in proportion
PUBLISHED, STAGES = "torchvision/resnet50", 4  # the network for which the lambdas were published


@dataclass(frozen=True)
class ClassificationOptions:
    network: str = setting("scenes", "scenes, flowers, timm/NAME, torchvision/NAME, or a checkpoint", path=True)
    weights: str | None = setting(
        "default", "those that the network comes with; a file; null: seeded random", path=True
    )
    classes: Any = setting(None, CLASSES_HELP, path=True)


class Classification:
    """Distortion is the feature distance; the score is top-1 where all classes of a data set are the network's, else
    agreement with the network's answer on the original. "top1" is that of the images whose class the network has.

    network, weights: as for `lora_comp.networks.load_network`. classes: the table of names of `labels.Labels`.
    """

    name, options = "cls", ClassificationOptions
    lr = 4e-2  # docs/finetuning.md
    metrics = ("score", "agreement", "feature_distance")

    def __init__(
        self,
        network: str | os.PathLike = "scenes",
        weights: str | os.PathLike | None = "default",
        classes: Mapping | str | os.PathLike | None = None,
    ):
        self.network = load_network(network, weights)
        self.key = f"cls-{network}" + ("" if weights == "default" else f"-{weights}")
        published = network == PUBLISHED and weights == "default"
        self.features = FeatureDistance(self.network, 1 / STAGES if published else None)
        self.targets, self.distortion = self.features.targets, self.features.distortion
        self.device = torch.device("cpu")
        self.labels = Labels(self.network, classes, self._count)

    def to(self, device: torch.device) -> "Classification":
        self.device = device
        self.features.to(device)
        return self

    def loss(self, decoded: Tensor, original: Tensor) -> Tensor:
        return self.distortion(decoded, self.targets(original)).mean()

    @torch.no_grad()
    def answer(self, image: Tensor) -> str:
        """The network's first class on an image (3, H, W): its name, or its number."""
        index = int(self.network(image[None].to(self.device)).argmax())
        return self.network.classes[index] if self.network.classes else f"class {index}"

    @torch.no_grad()
    def _count(self) -> int | None:
        logits = self.network(torch.full((1, 3, 224, 224), 0.5, device=self.device))
        return logits.shape[1] if logits.ndim == 2 else None

    def notes(self, data: str, sample: Sample) -> list[str]:
        """What the score of a data set with such samples is, where it is not top-1 by the names of its classes."""
        if sample.label is None or not sample.classes:
            return []
        matched, network = self.labels.of(sample.classes), self.network.name
        if matched.ranks:
            return [
                f"the network {network} does not name its classes: those of {data}, as many, are taken in their order"
            ]
        if not (missing := unmatched(sample, matched)):
            return []
        others = "; top-1 is that of the other classes" if matched.known else ""
        return [
            f"the network {network} has no class for {missing} of {data}: the score is agreement with its answers on "
            f"the originals{others} ({HOW})"
        ]

    def weight(self, quality: float) -> float:
        return 1000 * rate_lambda(LAMBDAS, quality)

    @torch.no_grad()
    def measure(self, decoded: Tensor, sample: Sample) -> dict[str, float]:
        pair = torch.stack([decoded.clamp(0, 1).cpu(), sample.image]).to(self.device)
        stages = self.network.stages(pair)
        answer, answer_on_original = self.network(pair).argmax(dim=1).tolist()
        distance = self.features.between([stage[:1] for stage in stages], [stage[1:] for stage in stages])
        label, scored = sample.label, sample.label is not None
        if label is not None and sample.classes:
            matched = self.labels.of(sample.classes)
            label, scored = matched.indexes[label], None not in matched.indexes
        agreement = {"agreement": float(answer == answer_on_original)}
        top1 = {} if label is None else {"top1": float(answer == label)}
        measured = top1 | agreement if scored else agreement | top1  # the score first, by which a table names it
        return {"score": next(iter(measured.values())), **measured, "feature_distance": float(distance)}
