"""The classifiers that ship: a small ResNet ("Deep Residual Learning for Image Recognition", CVPR 2016)."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_comp import zoo
from lora_comp.networks.external import Source
from lora_comp.networks.input import MEAN, STD
from lora_comp.networks.saved import read_saved
from lora_comp.networks.taps import Modules


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 2 of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual classifier of about 1 M parameters and 0.2 G multiplications at 256x256.

    widths, depths: channels and blocks of its four stages, at strides 4, 8, 16 and 32.
    """

    kind = "small_resnet"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: list[str],
        name: str = "small",
        widths: tuple[int, ...] = (24, 48, 96, 160),
        depths: tuple[int, ...] = (1, 1, 2, 2),
    ):
        super().__init__()
        self.name, self.classes, self.widths, self.depths = name, list(classes), tuple(widths), tuple(depths)
        self.stage_variance: list[float] | None = None
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        width = 16
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layers = nn.ModuleList()
        for outputs, depth in zip(self.widths, self.depths, strict=True):
            blocks = [_Block(width, outputs, 2)] + [_Block(outputs, outputs, 1) for _ in range(depth - 1)]
            self.layers.append(nn.Sequential(*blocks))
            width = outputs
        self.head = nn.Linear(width, len(self.classes))

    def stages(self, x: Tensor) -> list[Tensor]:
        """x: (B, 3, H, W) in [0, 1]. Returns four maps (B, width, H / stride, W / stride), rounded up."""
        x = self.stem((x - self.mean) / self.std)
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features

    def stages_and_logits(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        features = self.stages(x)
        return features, self.head(features[-1].mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages_and_logits(x)[1]

    def core(self) -> dict:
        return {
            "name": self.name,
            "classes": self.classes,
            "widths": self.widths,
            "depths": self.depths,
            "stage_variance": self.stage_variance,
        }


def _build(core: dict) -> SmallResNet:
    network = SmallResNet(core["classes"], core["name"], core["widths"], core["depths"])
    network.stage_variance = core["stage_variance"]
    return network


def load(name: str, weights: str | os.PathLike | None = "default") -> SmallResNet:
    """A classifier that ships, or the one in a file that `save_network` wrote. weights: see `load_network`."""
    shipped = zoo.network_path(name)
    path = Path(name) if not shipped.exists() else shipped if weights in ("default", None) else Path(weights)
    network = read_saved(path, _build, SmallResNet.kind)
    if weights is None and path == shipped:
        return SmallResNet(network.classes, name, network.widths, network.depths)
    return network


def read(name: str, weights: str | os.PathLike | None) -> Source:
    network = load(name, weights)
    stages = [f"layers.{index}" for index in range(len(network.layers))]
    return Source(Modules(network), stages=stages, classifier=True)
