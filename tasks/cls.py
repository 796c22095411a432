"""For a classifier: distance between the features of the decoded and the original picture.

After LoRA_comp (CVPR 2025): the mean over the network's stages of the squared error between features, weighted by
1000 lambda against bits per pixel.
"""

import copy
import os

import torch
from torch import Tensor, nn

from lora_comp.data.sample import Sample
from lora_comp.networks import TaskNetwork, fold_batch_norms, load_network
from lora_comp.tasks.rate import rate_lambda

LAMBDAS = (0.0009, 0.0017, 0.0033, 0.006)
PUBLISHED = "torchvision/resnet50"  # the network for which the lambdas were published

# Other networks' features have other magnitudes, so their errors are divided by the stages' variances and multiplied by
# this. At 1 a file of tic-s adapted to `scenes` has half the feature distance of the plain one but some percent more
# bytes; at a half it has less of both.
SCALE = 0.5


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class Classification:
    """Distortion is the feature distance; the score is top-1 where a label is known, else agreement with the network's
    own answer on the original.

    network, weights: as for `lora_comp.networks.load_network`. Labels count only if they index the network's classes.
    """

    name = "cls"
    lr = 4e-2  # docs/ttft.md
    metrics = ("score", "agreement", "feature_distance")

    def __init__(self, network: str | os.PathLike = "scenes", weights: str | os.PathLike | None = "default"):
        self.network = load_network(network, weights)
        self.key = f"cls-{network}" + ("" if weights == "default" else f"-{weights}")
        self.half: TaskNetwork | None = None  # the network with weights of bfloat16, once it was wanted
        self.device = torch.device("cpu")
        self.published = network == PUBLISHED and weights == "default"

    def to(self, device: torch.device) -> "Classification":
        self.device = device
        self.network.to(device)
        self.half = None
        return self

    def targets(self, original: Tensor) -> list[Tensor]:
        """The features of the originals at each stage."""
        with torch.no_grad():
            return self.network.stages(_channels_last(original))

    def _distance(self, features: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Mean over the stages of the squared error, in units of the stage's variance, times SCALE: (B,)."""
        total = torch.zeros(len(targets[0]), device=targets[0].device)  # (B,)
        for stage, (feature, target) in enumerate(zip(features, targets, strict=True)):
            apart = feature - target
            rows = apart.movedim(1, -1).flatten(1)  # as in memory: a gradient in another order slows all
            error = rows.square().mean(dim=1)  # (B,)
            if not self.published:
                known = self.network.stage_variance
                variance = known[stage] if known else target.flatten(1).var(dim=1).clamp_min(1e-8)
                error = error * SCALE / variance
            total = total + error / len(targets)
        return total

    def distortion(self, decoded: Tensor, targets: list[Tensor]) -> Tensor:
        network = self._in_half() if torch.is_autocast_enabled(decoded.device.type) else self.network
        return self._distance(network.stages(_channels_last(decoded.clamp(0, 1))), targets)

    def _in_half(self) -> TaskNetwork:
        """The network for autocast, which would convert its weights anew in every step; its batch norms folded."""
        if self.half is None:
            self.half = copy.deepcopy(self.network).to(memory_format=torch.channels_last)
            fold_batch_norms(self.half)
            for module in self.half.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.to(torch.bfloat16)
        return self.half

    def loss(self, decoded: Tensor, original: Tensor) -> Tensor:
        return self.distortion(decoded, self.targets(original)).mean()

    @torch.no_grad()
    def answer(self, picture: Tensor) -> str:
        """What the network sees in a picture (3, H, W): the name of its first class, or its number."""
        index = int(self.network(picture[None].to(self.device)).argmax())
        return self.network.classes[index] if self.network.classes else f"class {index}"

    def weight(self, quality: int) -> float:
        return 1000 * rate_lambda(LAMBDAS, quality)

    @torch.no_grad()
    def measure(self, decoded: Tensor, sample: Sample) -> dict[str, float]:
        pair = torch.stack([decoded.clamp(0, 1).cpu(), sample.image]).to(self.device)
        stages, logits = self.network.stages_and_logits(pair)
        answer, answer_on_original = logits.argmax(dim=1).tolist()
        distance = self._distance([stage[:1] for stage in stages], [stage[1:] for stage in stages])
        measured = {} if sample.label is None else {"top1": float(answer == sample.label)}
        measured |= {"agreement": float(answer == answer_on_original), "feature_distance": float(distance)}
        return {"score": measured.get("top1", measured["agreement"]), **measured}
