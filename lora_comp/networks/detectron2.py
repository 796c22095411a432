"""detectron2's detectors, by the names of its model zoo's configurations, and PointRend."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_comp.errors import LoraCompError, first_line
from lora_comp.networks.checkpoints import fitting, no_weights, read_checkpoint
from lora_comp.networks.coco import check_sides, to_bytes

try:
    from detectron2 import model_zoo
    from detectron2.config import CfgNode, get_cfg
    from detectron2.data import MetadataCatalog, transforms
    from detectron2.modeling import FPN, GeneralizedRCNN, build_model
    from detectron2.modeling.meta_arch.dense_detector import DenseDetector
    from detectron2.utils.file_io import PathManager
except ImportError as error:
    raise LoraCompError(
        f"detectron2 cannot be imported ({first_line(error)}): pip install 'setuptools<81' wheel, then pip install "
        "--no-build-isolation git+https://github.com/facebookresearch/detectron2"
    ) from error

# Its configuration lies beside the library, not in it. The name is that of its folder on detectron2's server.
POINT_REND = "PointRend/InstanceSegmentation/pointrend_rcnn_R_50_FPN_3x_coco"
_POINT_REND_WEIGHTS = f"detectron2://{POINT_REND}/164955410/model_final_edd263.pkl"


class Detectron2Detector(nn.Module):
    """A detector of detectron2. Its stages are what its backbone hands to its heads: of a feature pyramid P2 to P6.

    `detect` goes the way of detectron2's DefaultPredictor, which resizes bytes; `stages` resizes floats by the same
    filter (bilinear, antialiased), so that there is a gradient.
    """

    model: Any

    def __init__(self, name: str, model: nn.Module, config: CfgNode, published_scale: float | None):
        super().__init__()
        self.name, self.model, self.published_scale = name, model, published_scale
        self.classes: list[str] = list(MetadataCatalog.get(config.DATASETS.TEST[0]).get("thing_classes", []))
        self.has_masks = bool(config.MODEL.MASK_ON)
        self.stage_variance: list[float] | None = None
        self.short, self.longest = config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST
        self.reads_bgr = config.INPUT.FORMAT == "BGR"

    def _size(self, x: Tensor) -> tuple[int, int]:
        """Of the images (B, 3, H, W) as the network takes them."""
        check_sides(x, self.longest, self.name)
        return transforms.ResizeShortestEdge.get_output_shape(*x.shape[2:], self.short, self.longest)

    def _colours(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.reads_bgr else x

    def stages(self, x: Tensor) -> list[Tensor]:
        resized = F.interpolate(255 * self._colours(x), self._size(x), mode="bilinear", antialias=True)
        prepared = self.model.preprocess_image([{"image": image} for image in resized])
        return list(self.model.backbone(prepared.tensor).values())

    @torch.no_grad()
    def detect(self, x: Tensor) -> list[dict[str, Tensor]]:
        (height, width), images = x.shape[2:], self._colours(to_bytes(x)).permute(0, 2, 3, 1).cpu().numpy()
        resize = transforms.ResizeTransform(height, width, *self._size(x))
        resized = [torch.tensor(resize.apply_image(image)).permute(2, 0, 1).float() for image in images]
        found = []
        for answer in self.model([{"image": image, "height": height, "width": width} for image in resized]):
            objects = answer["instances"]
            one = {"boxes": objects.pred_boxes.tensor, "scores": objects.scores, "labels": objects.pred_classes}
            found.append(one | ({"masks": objects.pred_masks} if self.has_masks else {}))
        return found


class _Arrays(pickle.Unpickler):
    """Of the model zoo's files, which are pickles, nothing but numpy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ("_reconstruct", "scalar", "ndarray", "dtype") and module.partition(".")[0] == "numpy":
            return super().find_class(module, name)
        if (module, name) in (("collections", "OrderedDict"), ("_codecs", "encode")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, not only arrays")


def _load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """A checkpoint file of detectron2, as its model zoo offers (.pkl) or as it saves (.pth)."""
    with fitting(path, type(model).__name__):
        if str(path).endswith(".pkl"):
            with Path(path).open("rb") as file:
                saved = _Arrays(file, encoding="latin1").load()["model"]
            state = {key: torch.as_tensor(value) for key, value in saved.items()}
        else:
            state = read_checkpoint(path)
        lacking = model.load_state_dict(state, strict=False).missing_keys
        if lacking:
            raise ValueError(f"{len(lacking)} tensors are missing, as {lacking[0]}")


def _configuration(name: str) -> CfgNode:
    config = get_cfg()
    config.MODEL.DEVICE = "cpu"
    if name == POINT_REND:
        try:
            from detectron2.projects.point_rend import add_pointrend_config
        except ImportError as error:
            raise LoraCompError(
                f"PointRend cannot be imported ({error}): pip install opencv-python-headless"
            ) from error
        add_pointrend_config(config)
        config.merge_from_file(model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"))
        config.merge_from_list(
            [
                "MODEL.ROI_MASK_HEAD.NAME",
                "PointRendMaskHead",
                "MODEL.ROI_MASK_HEAD.POOLER_TYPE",
                "",
                "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON",
                True,
            ]
        )
        return config
    try:
        config.merge_from_file(model_zoo.get_config_file(f"{name}.yaml"))
    except RuntimeError as error:
        raise LoraCompError(
            f"detectron2's model zoo has no {name!r}; it has what lies in its folder configs, as "
            f"COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x, and {POINT_REND}"
        ) from error
    return config


def _published(name: str) -> str:
    """The path of the downloaded weights."""
    try:
        url = _POINT_REND_WEIGHTS if name == POINT_REND else model_zoo.get_checkpoint_url(f"{name}.yaml")
        return PathManager.get_local_path(url)
    except (OSError, RuntimeError) as error:
        raise no_weights(f"detectron2/{name}", error) from error


def load(name: str, weights: str | os.PathLike | None, masks: bool) -> Detectron2Detector:
    """See `load_detector`. name: "detectron2/CONFIG"."""
    name = name.partition("/")[2]
    config = _configuration(name)
    model = build_model(config)
    rcnn = isinstance(model, GeneralizedRCNN)
    if not (isinstance(model, DenseDetector) or (rcnn and model.proposal_generator)):
        raise LoraCompError(f"detectron2's {name!r} does not find objects by itself")
    scale = None
    if weights is not None:
        _load_weights(model, _published(name) if weights == "default" else weights)
        if rcnn and isinstance(model.backbone, FPN):
            scale = 0.02 if name == POINT_REND else 0.2
    return Detectron2Detector(f"detectron2/{name}", model, config, scale)
