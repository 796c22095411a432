"""DETR ("End-to-End Object Detection with Transformers", ECCV 2020) through Hugging Face's transformers."""

import os

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from lora_comp.errors import LoraCompError, first_line
from lora_comp.networks.checkpoints import fitting, no_weights, read_checkpoint
from lora_comp.networks.coco import check_sides, contiguous, in_classes, to_bytes

try:
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor
    from transformers.utils import logging
except ImportError as error:
    raise LoraCompError(f"DETR needs transformers ({first_line(error)}): pip install 'lora_comp[detr]'") from error

# What distinguishes the published models, as DetrConfig's arguments.
_MODELS: dict[str, dict] = {
    "facebook/detr-resnet-50": {"backbone": "resnet50"},
    "facebook/detr-resnet-50-dc5": {"backbone": "resnet50", "dilation": True},
    "facebook/detr-resnet-101": {"backbone": "resnet101"},
    "facebook/detr-resnet-101-dc5": {"backbone": "resnet101", "dilation": True},
}
_IDS = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # COCO's 91


class Detr(nn.Module):
    """A DETR of transformers. Its stages are the four of its ResNet, strides 4 to 32 (16 with dilation), of the image
    as its image processor prepares it, of which DETR itself reads the last."""

    table: Tensor

    def __init__(self, name: str, model: DetrForObjectDetection, published_scale: float | None):
        super().__init__()
        self.name, self.model, self.published_scale = name, model, published_scale
        self.processor = DetrImageProcessor()
        self.classes, table = contiguous(_IDS)
        self.register_buffer("table", table, persistent=False)
        self.has_masks = False
        self.stage_variance: list[float] | None = None

    def _prepare(self, x: Tensor, **options) -> dict[str, Tensor]:
        check_sides(x, self.processor.size["longest_edge"], self.name)
        return self.processor(list(x), input_data_format="channels_first", return_tensors="pt", **options)

    def stages(self, x: Tensor) -> list[Tensor]:
        prepared = self._prepare(x, do_rescale=False)
        return [stage for stage, _ in self.model.model.backbone(prepared["pixel_values"], prepared["pixel_mask"])]

    @torch.no_grad()
    def detect(self, x: Tensor) -> list[dict[str, Tensor]]:
        """The detections of all 100 queries, as published scores count them."""
        found = self.processor.post_process_object_detection(
            self.model(**self._prepare(to_bytes(x))), threshold=0.0, target_sizes=[tuple(x.shape[2:])] * len(x)
        )
        return [in_classes(one, self.table) for one in found]


def _from_file(config: DetrConfig, path: str | os.PathLike) -> DetrForObjectDetection:
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list hundreds of tensors; ours is one line
    try:
        with fitting(path, "DETR"):
            model, facts = DetrForObjectDetection.from_pretrained(
                None,
                config=config,
                state_dict=read_checkpoint(path),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            lacking = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in facts[kind]]
            if lacking:
                raise ValueError(f"{len(lacking)} tensors are missing or of another size, as {min(lacking)}")
    finally:
        logging.set_verbosity(level)
    return model


def load(name: str, weights: str | os.PathLike | None, masks: bool) -> Detr:
    """See `load_detector`. name: "transformers/NAME"."""
    name = name.partition("/")[2]
    if name not in _MODELS:
        raise LoraCompError(f"unknown DETR {name!r}; known are {', '.join(_MODELS)}")
    config = DetrConfig(num_labels=len(_IDS), use_pretrained_backbone=False, **_MODELS[name])
    try:
        if weights is None:
            model = DetrForObjectDetection(config)
        elif weights == "default":
            model = DetrForObjectDetection.from_pretrained(name)
        else:
            model = _from_file(config, weights)
    except OSError as error:
        raise no_weights(f"transformers/{name}", error) from error
    return Detr(f"transformers/{name}", model, 16.0 if weights is not None else None)
