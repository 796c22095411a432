"""For any network, without training and without code: the distance between its features of the decoded and of the
original image, in layers that are found automatically.

Each layer's error is divided by the layer's variance, and the mean over layers is weighed against bits as `cls` weighs
its stages (`features.py`), times `WEIGHT`: no weight is set by hand.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_comp.data.sample import Sample
from lora_comp.errors import LoraCompError
from lora_comp.networks import load_external
from lora_comp.networks.external import photos
from lora_comp.networks.taps import tensors_in
from lora_comp.settings import REQUIRED, setting
from lora_comp.tasks.cls import LAMBDAS
from lora_comp.tasks.features import FeatureDistance
from lora_comp.tasks.rate import rate_lambda

WEIGHT = 0.4  # docs/open.md
NEGLIGIBLE = 1e-3  # a feature distance that bfloat16 may cost


@dataclass(frozen=True)
class InputOptions:
    """How the network wants images; null: as its own library says, else as described here."""

    size: list[int] | None = setting(None, "[height,width] to resize to; as it is", low=1)
    channels: str | None = setting(None, "order of channels; rgb", choices=("rgb", "bgr"))
    range: float | None = setting(None, "value of white, 1 or 255; 1", above=0)
    mean: list[float] | None = setting(None, "subtracted from each channel, in units of the range; [0,0,0]")
    std: list[float] | None = setting(None, "each channel is divided by it, in units of the range; [1,1,1]", above=0)


@dataclass(frozen=True)
class OpenOptions:
    network: list[str] = setting(
        REQUIRED,
        "an ONNX, TorchScript or torch.export file, timm/NAME, torchvision/NAME or module:function; several as [A,B]",
        path=True,
    )
    weights: str | None = setting("default", "of timm and torchvision; a file; null: seeded random", path=True)
    layers: list[str] | None = setting(None, "names of those to match, as [layer3,layer4]; null picks them")
    input: Any = setting(
        InputOptions(), "a YAML file with the settings below; of several networks one for each, as [A,B]", path=True
    )
    shares: list[float] | None = setting(
        None, "how much each of several networks counts, as [3,1]; null: all alike", low=0
    )


class Open:
    """Distortion is the feature distance; the score is feature fidelity: the share of each layer's variance that the
    decoded image keeps, from 0 to 1, the mean over layers. For a network that returns one vector of logits, agreement
    says whether its first class is that on the original.

    network, weights, layers, input: as name, weights, layers, settings of `lora_comp.networks.load_external`.
    TorchScript files and MODULE:FUNCTION run code of their author's choice.
    """

    name, options = "open", OpenOptions
    lr = 4e-2  # docs/finetuning.md
    metrics = ("score", "feature_fidelity", "feature_distance")

    def __init__(
        self,
        network: str | os.PathLike = "",
        weights: str | os.PathLike | None = "default",
        layers: Sequence[str] | None = None,
        input: Mapping | str | os.PathLike | None = None,
    ):
        if not network:
            raise LoraCompError("the task open needs a network: network=FILE.onnx, or another of those in docs/open.md")
        self.network = load_external(network, weights, layers, input)
        self.key = f"open-{self.network.identity}"
        self.features = FeatureDistance(self.network)
        self.targets = self.features.targets
        self.device = torch.device("cpu")
        self.half_fits: bool | None = None  # whether bfloat16 leaves its features as they are, once it was measured

    def to(self, device: torch.device) -> "Open":
        self.device, self.half_fits = device, None
        self.features.to(device)
        return self

    def distortion(self, decoded: Tensor, targets: list[Tensor]) -> Tensor:
        kind = decoded.device.type
        if not torch.is_autocast_enabled(kind):
            return self.features.distortion(decoded, targets)
        if self.half_fits is None:
            self.half_fits = self._half_fits(kind)
        with torch.autocast(kind, torch.bfloat16, enabled=self.half_fits):
            return self.features.distortion(decoded, targets)

    @torch.no_grad()
    def _half_fits(self, kind: str) -> bool:
        measured = photos(self.network.probed).to(self.device)
        with torch.autocast(kind, enabled=False):
            targets = self.targets(measured)
        try:
            with torch.autocast(kind, torch.bfloat16):
                return float(self.features.distortion(measured, targets).mean()) < NEGLIGIBLE
        except Exception:  # a network that insists on float32, in its own words
            return False

    def loss(self, decoded: Tensor, original: Tensor) -> Tensor:
        return self.distortion(decoded, self.targets(original)).mean()

    def weight(self, quality: float) -> float:
        return 1000 * WEIGHT * rate_lambda(LAMBDAS, quality)

    @torch.no_grad()
    def answer(self, image: Tensor) -> str | None:
        """The network's first class on an image (3, H, W), if it returns one vector of logits."""
        outputs = tensors_in(self.network(image[None].to(self.device)))
        logits = next(iter(outputs.values()))
        one_vector = len(outputs) == 1 and logits.ndim == 2 and logits.numel() > 1
        return f"class {int(logits.argmax())}" if one_vector else None

    @torch.no_grad()
    def measure(self, decoded: Tensor, sample: Sample) -> dict[str, float]:
        original, decoded = sample.image.to(self.device), decoded.clamp(0, 1).to(self.device)
        targets, features = self.targets(original[None]), self.targets(decoded[None])
        kept = [
            max(0.0, 1 - float((feature - target).square().mean() / target.var().clamp_min(1e-12)))
            for feature, target in zip(features, targets, strict=True)
        ]
        fidelity = sum(kept) / len(kept)
        measured = {"score": fidelity, "feature_fidelity": fidelity}
        if answer := self.answer(original):
            measured["agreement"] = float(answer == self.answer(decoded))
        return measured | {"feature_distance": float(self.features.between(features, targets))}
