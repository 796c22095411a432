"""The detectors that ship: Faster R-CNN (NeurIPS 2015) and Mask R-CNN (ICCV 2017), torchvision's, with a feature
pyramid (CVPR 2017) on a small ResNet, for `scenes`."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from lora_comp import zoo
from lora_comp.data.shapes import KINDS
from lora_comp.networks.resnet import SmallResNet
from lora_comp.networks.saved import read_saved

LEVELS = ("0", "1", "2", "3")  # at strides 4, 8, 16 and 32
STRIDE = 32  # of the coarsest level; images are padded to multiples of it
ANCHORS = ((16, 23), (32, 45), (64, 91), (128, 181))  # pixels, squares
CANONICAL = 112  # pixels; objects of this side are assigned to the level of stride 16


class _ProposalHead(RPNHead):
    """Answers in float32, whatever precision autocast computes in: the boxes are made from it."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, boxes = super().forward(x)
        return [y.float() for y in logits], [y.float() for y in boxes]


class _BoxPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = super().forward(x)
        return logits.float(), boxes.float()


class _MaskPredictor(MaskRCNNPredictor):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


def _box_head(channels: int, width: int) -> nn.Sequential:
    """(n, channels, 7, 7) to (n, width)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 96, 3, 2, 1, bias=False),
        nn.BatchNorm2d(96),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96 * 4 * 4, width),
        nn.ReLU(),
    )


class _Pyramid(nn.Module):
    """SmallResNet's four stages and, from them, as many maps of `channels` channels, fine to coarse."""

    def __init__(self, body: SmallResNet, channels: int):
        super().__init__()
        body.head = nn.Identity()  # type: ignore[assignment]
        self.body, self.out_channels = body, channels
        self.fpn = FeaturePyramidNetwork(list(body.widths), channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(dict(zip(LEVELS, self.body.stages(x), strict=True)))


class SmallRCNN(nn.Module):
    """A detector of about 1.2 M parameters; with `masks` it also segments.

    widths, depths: of its SmallResNet. channels: of its pyramid.
    """

    kind = "small_rcnn"
    published_scale = None

    def __init__(
        self,
        classes: list[str],
        name: str = "small",
        masks: bool = False,
        widths: tuple[int, ...] = (24, 48, 96, 128),
        depths: tuple[int, ...] = (1, 1, 2, 1),
        channels: int = 48,
    ):
        super().__init__()
        self.name, self.classes, self.has_masks = name, list(classes), masks
        self.widths, self.depths, self.channels = tuple(widths), tuple(depths), channels
        self.stage_variance: list[float] | None = None
        self.pyramid = _Pyramid(SmallResNet(self.classes, name, self.widths, self.depths), channels)
        count = len(self.classes) + 1  # torchvision's label 0 is the background
        parts = {
            "rpn_anchor_generator": AnchorGenerator(ANCHORS, ((1.0,),) * len(ANCHORS)),
            "rpn_head": _ProposalHead(channels, len(ANCHORS[0])),
            "box_roi_pool": MultiScaleRoIAlign(LEVELS, 7, 2, canonical_scale=CANONICAL),
            "box_head": _box_head(channels, 256),
            "box_predictor": _BoxPredictor(256, count),
            "rpn_pre_nms_top_n_train": 300,
            "rpn_pre_nms_top_n_test": 200,
            "rpn_post_nms_top_n_train": 200,
            "rpn_post_nms_top_n_test": 100,
            "rpn_batch_size_per_image": 64,
            "box_batch_size_per_image": 48,
            "box_positive_fraction": 0.33,
            "box_detections_per_img": 50,
        }
        if masks:
            parts |= {
                "mask_roi_pool": MultiScaleRoIAlign(LEVELS, 14, 2, canonical_scale=CANONICAL),
                "mask_head": MaskRCNNHeads(channels, (channels,) * 3, 1, norm_layer=nn.BatchNorm2d),
                "mask_predictor": _MaskPredictor(channels, channels, count),
            }
        model = (MaskRCNN if masks else FasterRCNN)(self.pyramid, **parts)
        self.rpn, self.roi_heads = model.rpn, model.roi_heads  # its transform would resize

    def core(self) -> dict:
        return {
            "name": self.name,
            "classes": self.classes,
            "masks": self.has_masks,
            "widths": self.widths,
            "depths": self.depths,
            "channels": self.channels,
            "stage_variance": self.stage_variance,
        }

    def _maps(self, x: Tensor) -> tuple[ImageList, dict[str, Tensor]]:
        height, width = x.shape[2:]
        body = self.pyramid.body
        # Zeros to what follows the normalisation.
        padded = F.pad(x - body.mean, (0, -width % STRIDE, 0, -height % STRIDE)) + body.mean
        maps = {name: y.float() for name, y in self.pyramid(padded).items()}
        return ImageList(padded, [(height, width)] * len(x)), maps

    def stages(self, x: Tensor) -> list[Tensor]:
        """x: (B, 3, H, W) in [0, 1]. Returns four maps (B, channels, H / stride, W / stride), rounded up to cover the
        image padded to multiples of 32."""
        return list(self._maps(x)[1].values())

    def forward(self, x: Tensor, targets: list[dict[str, Tensor]] | None = None) -> tuple[list[dict], dict]:
        """Detections and losses of torchvision's two parts, whose labels count the background as 0.

        targets: in training, for each image "boxes", "labels" and, with masks, "masks" as uint8.
        """
        images, maps = self._maps(x)
        proposals, losses = self.rpn(images, maps, targets)
        found, more = self.roi_heads(maps, proposals, images.image_sizes, targets)
        return found, losses | more

    @torch.no_grad()
    def detect(self, x: Tensor) -> list[dict[str, Tensor]]:
        results = []
        for found in self(x)[0]:
            result = {"boxes": found["boxes"], "scores": found["scores"], "labels": found["labels"] - 1}
            if self.has_masks:
                result["masks"] = paste_masks_in_image(found["masks"], found["boxes"], x.shape[2:])[:, 0] >= 0.5
            results.append(result)
        return results


def _build(core: dict) -> SmallRCNN:
    network = SmallRCNN(core["classes"], core["name"], core["masks"], core["widths"], core["depths"], core["channels"])
    network.stage_variance = core["stage_variance"]
    return network


def load(name: str, weights: str | os.PathLike | None = "default", masks: bool = False) -> SmallRCNN:
    """The detector "scenes" (with `masks` its segmenter), or the one in a file that `save_network` wrote.

    weights: "default", None for random ones from torch's seed, or a file.
    """
    if name != "scenes":
        path = Path(name)
    elif weights is None:
        return SmallRCNN(list(KINDS), "scenes", masks)
    else:
        path = zoo.network_path("scenes-seg" if masks else "scenes-det") if weights == "default" else Path(weights)
    return read_saved(path, _build, SmallRCNN.kind, "detector")
