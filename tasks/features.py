"""The distance between a frozen network's features of the decoded image and of the original."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lora_comp.networks.external import ExternalNetwork
from lora_comp.networks.fold import fold_batch_norms

# Errors divided by the variances of their stages are multiplied by this. At 1, a tic-v file adapted to the classifier
# `scenes` has half the feature distance of the plain file, but is some percent larger; at 0.5 it is smaller in both.
SCALE = 0.5


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class FeatureDistance:
    """The mean over a network's stages of the squared error divided by the stage's variance, times SCALE; or, with
    `published_scale`, that times the sum over the stages of the mean squared error.

    network: a `lora_comp.networks.TaskNetwork`. Where its stage_variance is None, the variance of the original's own
    features is used.
    """

    def __init__(self, network, published_scale: float | None = None):
        self.network, self.published_scale = network, published_scale
        self.half: Any = None  # the network with bfloat16 weights, once it was needed

    def to(self, device: torch.device) -> "FeatureDistance":
        self.network.to(device)
        self.half = None
        return self

    @torch.no_grad()
    def targets(self, original: Tensor) -> list[Tensor]:
        """The features of the originals (B, 3, H, W) at each stage."""
        return self.network.stages(_channels_last(original))

    def distortion(self, decoded: Tensor, targets: list[Tensor]) -> Tensor:
        """The distance (B,) of decoded images (B, 3, H, W), differentiable in them."""
        network = self._in_half() if torch.is_autocast_enabled(decoded.device.type) else self.network
        return self.between(network.stages(_channels_last(decoded.clamp(0, 1))), targets)

    def between(self, features: list[Tensor], targets: list[Tensor]) -> Tensor:
        """The distance (B,) of features."""
        total = torch.zeros(len(targets[0]), device=targets[0].device)  # (B,)
        for stage, (feature, target) in enumerate(zip(features, targets, strict=True)):
            apart = feature - target
            rows = apart.movedim(1, -1).flatten(1)  # as in memory: a gradient in another order slows all
            error = rows.square().mean(dim=1)  # (B,)
            if self.published_scale is not None:
                error = error * self.published_scale
            else:
                known = self.network.stage_variance
                variance = known[stage] if known else target.flatten(1).var(dim=1).clamp_min(1e-8)
                error = error * SCALE / variance / len(targets)
            total = total + error
        return total

    def _in_half(self):
        """The network for autocast, its batch norms folded; autocast alone would convert its weights in every step."""
        if self.half is None:
            self.half = copy.deepcopy(self.network).to(memory_format=torch.channels_last)
            if isinstance(self.half, ExternalNetwork):
                fold_batch_norms(self.half.model, self.half.stage_modules)
            else:
                fold_batch_norms(self.half)
            for module in self.half.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.to(torch.bfloat16)
        return self.half
