"""Pascal VOC and Cityscapes. Their annotations are a file for each image: where one is wrong, its image raises
ImageError when it is read, and so does an image that does not exist."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_comp.data.folders import FolderOptions, spread
from lora_comp.data.found import find_images, is_hidden
from lora_comp.data.images import read_image
from lora_comp.data.sample import Sample
from lora_comp.errors import ImageError, LoraCompError, first_line
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
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _boxes_of(masks: Tensor) -> Tensor:
    """Bounding boxes of non-empty masks (n, H, W): float32 (n, 4), x1 y1 x2 y2, right and lower edge exclusive."""
    boxes = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        boxes.append([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


@dataclass(frozen=True)
class VocOptions(FolderOptions):
    path: str = setting(REQUIRED, "folder that holds VOCdevkit/", path=True)


@dataclass(frozen=True)
class _Object:
    """corners: xmin, ymin, xmax, ymax as VOC counts them, from 1 on, both edges inclusive."""

    name: str
    corners: tuple[float, ...]
    difficult: bool


class Voc:
    """Pascal VOC: ROOT/VOCdevkit/VOC2012/, or the latest year present, or that folder itself. Boxes without masks.

    The split is read from ImageSets/Main/; without that folder, every file of Annotations/ counts. The classes are
    VOC's twenty, and after them others that are annotated. Objects marked difficult are `crowd`: ignored by the score.
    """

    options = VocOptions

    def __init__(self, path: str | os.PathLike, split: str = "val", limit: int | None = None):
        places = [Path(path), *sorted(Path(path).glob("VOC20*")), *sorted(Path(path).glob("VOCdevkit/VOC20*"))]
        roots = [place for place in places if (place / "JPEGImages").is_dir() and (place / "Annotations").is_dir()]
        if not roots:
            raise LoraCompError(
                f"{path} is not Pascal VOC's layout, {path}/VOCdevkit/VOC2012/ with JPEGImages/, Annotations/ and "
                "ImageSets/Main/"
            )
        self.name, self.root = "voc", roots[-1]
        self.images = {image.stem: image for image in reversed(find_images(self.root / "JPEGImages").images)}
        self.stems = spread(self._listed(split), limit)
        seen = {one.name for stem in self.stems for one in self._readable(stem)}
        self.classes = [*VOC_CLASSES, *sorted(seen.difference(VOC_CLASSES))]
        self.present = [label for label, name in enumerate(self.classes) if name in seen]

    def _listed(self, split: str) -> list[str]:
        """The names of the images of a split."""
        lists = self.root / "ImageSets" / "Main"
        if not lists.is_dir():
            stems = [p.stem for p in sorted((self.root / "Annotations").glob("*.xml")) if not is_hidden(p.name)]
            found = self.root / "Annotations"
        else:
            found = lists / f"{split}.txt"
            try:
                words = [line.split() for line in found.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
            except OSError as error:
                known = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))[:5])
                raise LoraCompError(f"cannot read {found}: {error.strerror}; there are {known or 'none'}") from None
            stems = list(dict.fromkeys(line[0] for line in words if line))
        if not stems:
            raise LoraCompError(f"{found} names no image")
        return stems

    def _annotations(self, stem: str) -> Path:
        return self.root / "Annotations" / f"{stem}.xml"

    def _readable(self, stem: str) -> list[_Object]:
        try:
            return _voc_objects(self._annotations(stem))[0]
        except ImageError:  # raised again when the image is read
            return []

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> Sample:
        stem = self.stems[index]
        path = self.images.get(stem, self.root / "JPEGImages" / f"{stem}.jpg")
        objects, size = _voc_objects(self._annotations(stem))
        if not path.exists():
            raise ImageError(f"{path} does not exist, though {self._annotations(stem)} annotates it")
        image = read_image(path)
        height, width = image.shape[1:]
        if size not in ((0, 0), (width, height)):
            raise ImageError(f"{path} is {width}x{height}, but {self._annotations(stem)} says {size[0]}x{size[1]}")
        boxes = torch.tensor([one.corners for one in objects], dtype=torch.float32).reshape(-1, 4)
        return Sample(
            path.name,
            image,
            boxes=boxes - torch.tensor([1.0, 1.0, 0.0, 0.0]),
            labels=torch.tensor([self.classes.index(one.name) for one in objects], dtype=torch.int64),
            crowd=torch.tensor([one.difficult for one in objects], dtype=torch.bool),
            annotated=True,
            classes=self.classes,
            present=self.present,
        )


def _voc_objects(path: Path) -> tuple[list[_Object], tuple[int, int]]:
    """The objects in a file of annotations, and the width and height that it says, or 0, 0. Raises ImageError, with the
    number of the object that is wrong."""
    try:
        data = path.read_bytes()
        try:
            root = ElementTree.fromstring(data)
        except ElementTree.ParseError:
            root = ElementTree.fromstring(data.decode("latin-1"))  # which some write without saying so
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ImageError(f"{path} is not XML: {first_line(error)}") from None
    width, height = (int(_number(root, f"size/{side}") or 0) for side in ("width", "height"))
    size = (width, height) if min(width, height) > 0 else (0, 0)
    return [_voc_object(one, f"{path}: object {i}") for i, one in enumerate(root.findall("object"), 1)], size


def _voc_object(one: Element, about: str) -> _Object:
    name = " ".join((one.findtext("name") or "").split())
    if not name:
        raise ImageError(f"{about} has no name")
    if one.find("bndbox") is None:
        raise ImageError(f"{about} ({name}) has no bndbox")
    corners = [_number(one, f"bndbox/{corner}") for corner in CORNERS]
    sides = [side for side in corners if side is not None]
    if len(sides) < len(corners):
        shown = ", ".join(f"{corner} {one.findtext(f'bndbox/{corner}')!r}" for corner in CORNERS)
        raise ImageError(f"{about} ({name}) has a bndbox that is not four finite numbers: {shown}")
    x1, y1, x2, y2 = sides
    if x2 < x1 or y2 < y1:
        raise ImageError(f"{about} ({name}) has a bndbox that ends before it begins: {x1:g}, {y1:g}, {x2:g}, {y2:g}")
    return _Object(name, (x1, y1, x2, y2), (one.findtext("difficult") or "").strip().lower() in ("1", "true"))


def _number(element: Element, path: str) -> float | None:
    try:
        number = float(element.findtext(path) or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) < 2**31 else None


@dataclass(frozen=True)
class CityscapesOptions(FolderOptions):
    path: str = setting(REQUIRED, "folder that holds leftImg8bit/ and gtFine/", path=True)


class Cityscapes:
    """Cityscapes' fine annotations: ROOT/leftImg8bit/SPLIT/CITY/ and ROOT/gtFine/SPLIT/CITY/.

    The objects of the eight classes with instances; groups of objects are `crowd`.
    """

    options = CityscapesOptions

    def __init__(self, path: str | os.PathLike, split: str = "val", limit: int | None = None):
        from torchvision.datasets import Cityscapes as Facts

        images, self.targets = Path(path) / "leftImg8bit" / split, Path(path) / "gtFine" / split
        for folder in (images, self.targets):
            if not folder.is_dir():
                raise LoraCompError(
                    f"{path} is not Cityscapes' layout, {path}/leftImg8bit/ and gtFine/: there is no folder {folder}"
                )
        found = sorted(images.glob("*/*_leftImg8bit.png"))
        self.images = spread([p for p in found if not (is_hidden(p.name) or is_hidden(p.parent.name))], limit)
        if not self.images:
            raise LoraCompError(f"{images} holds no images CITY/NAME_leftImg8bit.png")
        kinds = [kind for kind in Facts.classes if kind.has_instances and not kind.ignore_in_eval]
        self.name, self.classes = "cityscapes", [kind.name for kind in kinds]
        self.labels = {kind.id: label for label, kind in enumerate(kinds)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        path = self.images[index]
        name = path.name.removesuffix("leftImg8bit.png") + "gtFine_instanceIds.png"
        image = read_image(path)
        ids = _instance_ids(self.targets / path.parent.name / name, (image.shape[1], image.shape[2]))
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
            classes=self.classes,
        )


def _instance_ids(path: Path, size: tuple[int, int]) -> np.ndarray:
    """For each pixel of an image of size (H, W) the class of a group, or 1000 * class + instance."""
    try:
        with Image.open(path) as image:
            ids = np.asarray(image).astype(np.int64)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist, which should annotate an image") from None
    except Exception as error:  # Pillow's decoders raise almost any exception for a corrupt file
        raise ImageError(f"{path} cannot be read as instance ids: {first_line(error)}") from None
    if ids.shape != size:
        raise ImageError(f"{path} is {'x'.join(map(str, ids.shape[::-1]))}, but its image is {size[1]}x{size[0]}")
    return ids
