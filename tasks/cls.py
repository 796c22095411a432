"""For a classifier: distance between the features of the decoded and the original image.

After LoRA_comp (CVPR 2025): the mean over the network's stages of the squared error between features, weighted by
1000 lambda against bits per pixel. Other networks than the published one have features of other magnitudes: their
errors are divided by the variances of the stages (`features.py`).
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_comp.data.sample import Sample
from lora_comp.networks import load_network
from lora_comp.settings import setting
from lora_comp.tasks.features import FeatureDistance
from lora_comp.tasks.rate import rate_lambda

LAMBDAS = (0.0009, 0.0017, 0.0033, 0.006)
PUBLISHED, STAGES = "torchvision/resnet50", 4  # the network for which the lambdas were published


@dataclass(frozen=True)
class ClassificationOptions:
    network: str = setting("scenes", "scenes, flowers, timm/NAME, torchvision/NAME, or a checkpoint", path=True)
    weights: str | None = setting(
        "default", "those that the network comes with; a file; null: seeded random", path=True
    )


class Classification:
    """Distortion is the feature distance; the score is top-1 where a label is known, else agreement with the network's
    answer on the original.

    network, weights: as for `lora_comp.networks.load_network`. Labels count only if they index the network's classes.
    """

    name, options = "cls", ClassificationOptions
    lr = 4e-2  # docs/finetuning.md
    metrics = ("score", "agreement", "feature_distance")

    def __init__(self, network: str | os.PathLike = "scenes", weights: str | os.PathLike | None = "default"):
        self.network = load_network(network, weights)
        self.key = f"cls-{network}" + ("" if weights == "default" else f"-{weights}")
        published = network == PUBLISHED and weights == "default"
        self.features = FeatureDistance(self.network, 1 / STAGES if published else None)
        self.targets, self.distortion = self.features.targets, self.features.distortion
        self.device = torch.device("cpu")

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

    def weight(self, quality: int) -> float:
        return 1000 * rate_lambda(LAMBDAS, quality)

    @torch.no_grad()
    def measure(self, decoded: Tensor, sample: Sample) -> dict[str, float]:
        pair = torch.stack([decoded.clamp(0, 1).cpu(), sample.image]).to(self.device)
        stages = self.network.stages(pair)
        answer, answer_on_original = self.network(pair).argmax(dim=1).tolist()
        distance = self.features.between([stage[:1] for stage in stages], [stage[1:] for stage in stages])
        measured = {} if sample.label is None else {"top1": float(answer == sample.label)}
        measured |= {"agreement": float(answer == answer_on_original), "feature_distance": float(distance)}
        return {"score": measured.get("top1", measured["agreement"]), **measured}
