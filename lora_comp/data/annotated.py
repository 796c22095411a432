"""Data sets with annotated objects: COCO, Pascal VOC, Cityscapes.

Label i is class i of `classes`. A missing image that the annotations name raises ImageError when it is read.
"""

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor

from lora_comp.data.folders import FolderOptions, spread
from lora_comp.data.images import read_image
from lora_comp.data.sample import Sample
from lora_comp.errors import ImageError, LoraCompError
from lora_comp.settings import REQUIRED, setting

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def _image(path: Path, annotations: object) -> Tensor:
    if not path.exists():
        raise ImageError(f"{path} does not exist, though {annotations} names it")
    return read_image(path)


def _boxes_of(masks: Tensor) -> Tensor:
    """Bounding boxes of non-empty masks (n, H, W): float32 (n, 4), x1 y1 x2 y2, right and lower edge exclusive."""
    boxes = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        boxes.append([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


@dataclass(frozen=True)
class CocoOptions(FolderOptions):
    path: str = setting(
        REQUIRED, "folder that holds annotations/ and val2017/, or instances.json and images/", path=True
    )


class Coco:
    """COCO's layout: ROOT/annotations/instances_val2017.json with ROOT/val2017/, or ROOT/instances.json with
    ROOT/images/.

    Labels number the categories by rising id. Images without objects are included.
    Raises LoraCompError if the annotations or the images cannot be found.
    """

    options = CocoOptions

    def __init__(self, path: str | os.PathLike, split: str = "val", limit: int | None = None):
        root, self.name = Path(path), Path(path).name
        files = [*root.glob("instances.json"), *sorted(root.glob(f"annotations/instances_{split}*.json"))]
        if not files:
            raise LoraCompError(
                f"{root} has no COCO annotations: it needs instances.json or annotations/instances_{split}2017.json"
            )
        self.annotations = files[0]
        self.coco = _read_annotations(self.annotations)
        categories = sorted(self.coco.getCatIds())
        self.classes = [one["name"] for one in self.coco.loadCats(categories)]
        self.labels = {category: label for label, category in enumerate(categories)}
        self.ids = spread(sorted(self.coco.getImgIds()), limit)
        years = [folder for name in (f"{split}20*", f"images/{split}20*") for folder in sorted(root.glob(name))]
        folders = [*years, root / "images" / split, root / split, root / "images", root]
        names = [one["file_name"] for one in self.coco.loadImgs(self.ids)]
        self.root = next((folder for name in names for folder in folders if (folder / name).exists()), root)
        if not names or not any((self.root / name).exists() for name in names):
            raise LoraCompError(f"{root} holds none of the {len(names)} images that {self.annotations} names")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        [facts] = self.coco.loadImgs(self.ids[index])
        image = _image(self.root / facts["file_name"], self.annotations)
        height, width = image.shape[1:]
        if (facts["height"], facts["width"]) != (height, width):
            raise ImageError(
                f"{self.root / facts['file_name']} is {width}x{height}, but {self.annotations} says "
                f"{facts['width']}x{facts['height']}"
            )
        objects = self.coco.loadAnns(self.coco.getAnnIds(facts["id"]))
        boxes = torch.tensor([one["bbox"] for one in objects]).reshape(-1, 4)  # x, y, width, height
        masked = all(one.get("segmentation") for one in objects)
        masks = [torch.from_numpy(self.coco.annToMask(one)).bool() for one in objects] if masked else []
        return Sample(
            facts["file_name"],
            image,
            boxes=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            labels=torch.tensor([self.labels[one["category_id"]] for one in objects], dtype=torch.int64),
            masks=torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
            crowd=torch.tensor([bool(one.get("iscrowd")) for one in objects], dtype=torch.bool),
            annotated=True,
        )


def _read_annotations(path: Path) -> COCO:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(path))
            missing = {"images", "annotations", "categories"} - set(coco.dataset)
    except (OSError, ValueError, AssertionError, KeyError, TypeError) as error:
        raise LoraCompError(f"{path} cannot be read as COCO annotations: {error}") from None
    if missing:
        raise LoraCompError(f"{path} is not a file of COCO annotations: it has no {' and no '.join(sorted(missing))}")
    return coco


@dataclass(frozen=True)
class VocOptions(FolderOptions):
    path: str = setting(REQUIRED, "folder that holds VOCdevkit/", path=True)


class Voc:
    """Pascal VOC through torchvision: ROOT/VOCdevkit/VOC2012/, or the latest year present. Boxes without masks.

    Objects marked difficult are `crowd`: ignored by the score.
    """

    options = VocOptions

    def __init__(self, path: str | os.PathLike, split: str = "val", limit: int | None = None):
        from torchvision.datasets import VOCDetection

        years = sorted(folder.name.removeprefix("VOC") for folder in Path(path).glob("VOCdevkit/VOC20*"))
        try:
            self.read = VOCDetection(path, years[-1] if years else "2012", split)
        except (RuntimeError, ValueError, OSError) as error:
            raise LoraCompError(f"{path} is not Pascal VOC's layout, {path}/VOCdevkit/VOC2012/: {error}") from None
        self.name, self.classes = "voc", list(VOC_CLASSES)
        self.indexes = spread(list(range(len(self.read))), limit)

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, index: int) -> Sample:
        from xml.etree.ElementTree import parse

        at = self.indexes[index]
        path, annotations = Path(self.read.images[at]), self.read.annotations[at]
        image = _image(path, annotations)
        objects = self.read.parse_voc_xml(parse(annotations).getroot())["annotation"].get("object", [])
        corners = [[float(one["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax")] for one in objects]
        boxes = torch.tensor(corners).reshape(-1, 4)  # 1-based, both edges inclusive
        return Sample(
            path.name,
            image,
            boxes=boxes - torch.tensor([1.0, 1.0, 0.0, 0.0]),
            labels=torch.tensor([self.classes.index(one["name"]) for one in objects], dtype=torch.int64),
            crowd=torch.tensor([one.get("difficult") == "1" for one in objects], dtype=torch.bool),
            annotated=True,
        )


@dataclass(frozen=True)
class CityscapesOptions(FolderOptions):
    path: str = setting(REQUIRED, "folder that holds leftImg8bit/ and gtFine/", path=True)


class Cityscapes:
    """Cityscapes' fine annotations through torchvision: ROOT/leftImg8bit/ and ROOT/gtFine/.

    The objects of the eight classes with instances; groups of objects are `crowd`.
    """

    options = CityscapesOptions

    def __init__(self, path: str | os.PathLike, split: str = "val", limit: int | None = None):
        from torchvision.datasets import Cityscapes as Reader

        try:
            self.read = Reader(path, split, mode="fine", target_type="instance")
        except (RuntimeError, ValueError, OSError) as error:
            line = " ".join(str(error).split())
            raise LoraCompError(f"{path} is not Cityscapes' layout, {path}/leftImg8bit/ and gtFine/: {line}") from None
        kinds = [kind for kind in Reader.classes if kind.has_instances and not kind.ignore_in_eval]
        self.name, self.classes = "cityscapes", [kind.name for kind in kinds]
        self.labels = {kind.id: label for label, kind in enumerate(kinds)}
        self.indexes = spread(list(range(len(self.read))), limit)

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, index: int) -> Sample:
        at = self.indexes[index]
        path, annotations = Path(self.read.images[at]), self.read.targets[at][0]
        image = _image(path, annotations)
        ids = np.asarray(Image.open(annotations)).astype(np.int64)  # class of a group, or 1000 * class + instance
        present = [i for i in np.unique(ids).tolist() if (i // 1000 if i >= 1000 else i) in self.labels]
        masks = (
            torch.from_numpy(np.stack([ids == i for i in present]))
            if present
            else torch.zeros(0, *image.shape[1:], dtype=torch.bool)
        )
        return Sample(
            path.name,
            image,
            boxes=_boxes_of(masks),
            masks=masks,
            labels=torch.tensor([self.labels[i // 1000 if i >= 1000 else i] for i in present], dtype=torch.int64),
            crowd=torch.tensor([i < 1000 for i in present], dtype=torch.bool),
            annotated=True,
        )
