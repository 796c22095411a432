"""COCO's layout and annotations, as COCO wrote them and as other programs do.

What can mean one thing alone is read as that: numbers as text, a missing height or width, polygons without a list
around them, `\\` in file names, a gzipped file, one that is not UTF-8. Anything else is refused in one line with the id
of the annotation, and what is left out is noted.
"""

import gzip
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from lora_comp.data.folders import FolderOptions, spread
from lora_comp.data.found import below
from lora_comp.data.images import read_image
from lora_comp.data.masks import MAX, mask_of
from lora_comp.data.sample import Sample
from lora_comp.errors import ImageError, LoraCompError, first_line
from lora_comp.settings import REQUIRED, setting

Id = int | str
BEYOND = 2.0  # pixels that a box may reach beyond its image before it is noted
COCO_IDS = frozenset(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


@dataclass(frozen=True)
class CocoOptions(FolderOptions):
    path: str = setting(
        REQUIRED, "folder of annotations/ and val2017/, or of instances.json and images/, or the .json file", path=True
    )


@dataclass(frozen=True)
class _Object:
    """An annotation. about: its name in messages."""

    about: str
    image: Id
    category: Id
    box: tuple[float, ...]
    crowd: bool
    segmentation: Any


@dataclass(frozen=True)
class _Image:
    id: Id
    file: str
    height: int | None
    width: int | None


class Coco:
    """COCO's layout: ROOT/annotations/instances_val2017.json with ROOT/val2017/, or ROOT/instances.json with
    ROOT/images/, or ROOT/val/ with _annotations.coco.json beside the images; or `path` is the file of annotations, with
    the images below its folder or the one above. The file may be gzipped.

    Labels number the categories by rising id. A file that has exactly the ids of COCO's 80 categories has COCO's,
    whatever their names. Images without objects are included. Without any annotation, images are not annotated.

    notes: what is left out or doubtful, a line each.
    Raises LoraCompError if the annotations or the images cannot be found, or the annotations are not well-formed.
    """

    options = CocoOptions

    def __init__(self, path: str | os.PathLike, split: str = "val", limit: int | None = None):
        root, self.name = Path(path), Path(path).resolve().name
        patterns = ("instances.json", f"annotations/instances_{split}*.json", "_annotations.coco.json")
        files = [file for pattern in patterns for end in ("", ".gz") for file in sorted(root.glob(pattern + end))]
        files += sorted(below(root, split).glob("_annotations.coco.json"))
        if root.is_file():
            files, root = [root], root.parent
        if not root.is_dir():
            raise LoraCompError(f"{root} does not exist; give the folder of COCO annotations, or their file")
        if not files:
            raise LoraCompError(
                f"{root} has no COCO annotations: it needs instances.json or annotations/instances_{split}2017.json"
            )
        self.annotations, self.notes = files[0], list[str]()
        content = _read(self.annotations)
        try:
            images = list(_images(content["images"]))
            names = _categories(content["categories"])
            objects = list(_objects(content["annotations"], names))
            self.objects = self._by_image(objects, {image.id: image for image in images})
        except ValueError as error:
            raise LoraCompError(f"{self.annotations}: {' '.join(str(error).split())}") from None
        categories = sorted(names, key=_order)
        self.classes = _coco_names(names) if names.keys() == COCO_IDS else [names[category] for category in categories]
        self.labels = {category: label for label, category in enumerate(categories)}
        self.present = sorted({self.labels[one.category] for same in self.objects.values() for one in same})
        self.images = spread(sorted(images, key=lambda image: _order(image.id)), limit)
        self.unique_names = len({_tail(one.file) for one in images}) == len(images)
        self._find_images(root, split, Path(path).is_file())

    def _by_image(self, objects: Sequence[_Object], images: dict[Id, _Image]) -> dict[Id, list[_Object]]:
        """The objects of each image; ValueError if none has an image."""
        by_image: dict[Id, list[_Object]] = defaultdict(list)
        orphans, beyond = list[_Object](), list[_Object]()
        for one in objects:
            image = images.get(one.image)
            if image is None:
                orphans.append(one)
                continue
            by_image[one.image].append(one)
            x, y, width, height = one.box
            ends = ((x + width, image.width), (y + height, image.height))
            if any(side and end > side + BEYOND for end, side in ends) or min(x, y) < -BEYOND:
                beyond.append(one)
        if orphans and not by_image:
            raise ValueError(
                f"none of its {len(objects)} annotations belongs to an image in it: {orphans[0].about} has image_id "
                f"{orphans[0].image!r}, and the ids of images are {_some(images)}"
            )
        numbers = [number for same in by_image.values() for one in same for number in one.box]
        if numbers and max(numbers) <= 1 and any(number % 1 for number in numbers):
            raise ValueError("every bbox is within a pixel: they must be in pixels, not in shares of the image")
        for found, what in (
            (orphans, "belong to no image in it and are left out"),
            (beyond, "reach beyond their images, though a bbox is [x, y, width, height] in pixels"),
        ):
            if found:
                self.notes.append(
                    f"{self.annotations}: {len(found)} of {len(objects)} annotations {what}, as {found[0].about}"
                )
        repeated = sum(count - 1 for count in Counter(one.about for one in objects).values())
        if repeated:
            self.notes.append(f"{self.annotations}: {repeated} annotations have the id of another; all count")
        if not objects:
            self.notes.append(f"{self.annotations} annotates no object")
        return by_image

    def _find_images(self, root: Path, split: str, above: bool) -> None:
        """The folders where the images may lie. above: also beside the folder."""
        years = [folder for name in (f"{split}20*", f"images/{split}20*") for folder in sorted(root.glob(name))]
        self.folders = [*years, root / "images" / split, below(root, split), root / "images", root]
        self.folders += [root.parent / folder for folder in (f"{split}2017", split, "images", ".") if above]
        if not any(os.path.exists(self._file(image)) for image in self.images):
            raise LoraCompError(f"{root} holds none of the {len(self.images)} images that {self.annotations} names")

    def _file(self, image: _Image) -> Path:
        slashed = image.file.replace("\\", "/")
        names = dict.fromkeys([image.file, slashed, *([_tail(image.file)] if self.unique_names else [])])
        places = [folder / name for name in names for folder in self.folders]
        for found, place in enumerate(places):
            if os.path.exists(place):
                folder = self.folders.pop(found % len(self.folders))
                self.folders.insert(0, folder)  # the next ones are likely there too
                return place
        return self.folders[0] / image.file

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        facts = self.images[index]
        path, objects = self._file(facts), self.objects.get(facts.id, [])
        if not os.path.exists(path):  # Path.exists raises for a name that is too long
            raise ImageError(f"{path} does not exist, though {self.annotations} names it")
        image = read_image(path)
        height, width = image.shape[1:]
        if (facts.height or height, facts.width or width) != (height, width):
            raise ImageError(
                f"{path} is {width}x{height}, but {self.annotations} says {facts.width or width}x"
                f"{facts.height or height}"
            )
        boxes = torch.tensor([one.box for one in objects], dtype=torch.float32).reshape(-1, 4)  # x, y, width, height
        try:
            masked = all(one.segmentation for one in objects)
            masks = [_mask(one, height, width) for one in objects] if masked else []
        except ValueError as error:
            raise ImageError(f"{self.annotations}: {error}") from None
        return Sample(
            _safe(facts.file),
            image,
            boxes=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            labels=torch.tensor([self.labels[one.category] for one in objects], dtype=torch.int64),
            masks=torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
            crowd=torch.tensor([one.crowd for one in objects], dtype=torch.bool),
            annotated=bool(self.objects),
            classes=self.classes,
            present=self.present,
        )


def _read(path: Path) -> dict[str, list]:
    """The three lists of a file of annotations."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        try:
            content = json.loads(data)
        except UnicodeDecodeError:
            content = json.loads(data.decode("latin-1"))
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise LoraCompError(f"{path} cannot be read as COCO annotations: {first_line(error)}") from None
    if isinstance(content, list):
        what = "detections" if content and isinstance(content[0], dict) and "score" in content[0] else "a list"
        raise LoraCompError(
            f"{path} cannot be read as COCO annotations: it is {what}, not an object with images, annotations and "
            "categories"
        )
    if not isinstance(content, dict):
        raise LoraCompError(f"{path} cannot be read as COCO annotations: it is no object with images")
    keys = ("annotations", "categories", "images")
    if missing := [key for key in keys if key not in content]:
        raise LoraCompError(f"{path} is not a file of COCO annotations: it has no {' and no '.join(missing)}")
    for key in keys:
        if not isinstance(content[key], list) or not all(isinstance(one, dict) for one in content[key]):
            raise LoraCompError(f"{path} is not a file of COCO annotations: its {key} are no list of objects")
    for key in ("images", "categories"):
        if not content[key]:
            raise LoraCompError(f"{path} is not a file of COCO annotations: its list of {key} is empty")
    return content


def _images(entries: Iterable[dict]) -> Iterator[_Image]:
    seen, files = dict[Id, str](), dict[str, Id]()
    for number, one in enumerate(entries, 1):
        own = _id(one.get("id"))
        if own is None:
            raise ValueError(f"the id of image number {number} is {_shown(one, 'id')}, not a number or text")
        file = one.get("file_name") or one.get("coco_url")
        if not isinstance(file, str) or not _tail(file):
            raise ValueError(f"image {own} has no file_name")
        if not one.get("file_name"):  # LVIS has the address alone
            file = "/".join(PurePosixPath(file).parts[-2:])
        if own in seen:
            if seen[own] == file:
                continue
            raise ValueError(f"{seen[own]} and {file} have the same image id {own}")
        if _safe(file) in files:
            raise ValueError(f"the images {files[_safe(file)]} and {own} are the same file {file}")
        seen[own], files[_safe(file)] = file, own
        yield _Image(own, file, _side(one.get("height")), _side(one.get("width")))


def _categories(entries: Iterable[dict]) -> dict[Id, str]:
    names: dict[Id, str] = {}
    for number, one in enumerate(entries, 1):
        own, name = _id(one.get("id")), one.get("name")
        if own is None:
            raise ValueError(f"the id of category number {number} is {_shown(one, 'id')}, not a number or text")
        if isinstance(name, bool) or not isinstance(name, (str, int, float)) or not str(name).strip():
            raise ValueError(f"category {own} has no name")
        name = " ".join(str(name).split())
        if names.setdefault(own, name) != name:
            raise ValueError(f"the categories {names[own]} and {name} have the same id {own}")
    return names


def _objects(entries: Iterable[dict], categories: dict[Id, str]) -> Iterator[_Object]:
    """ValueError names the first annotation that is wrong, and how many more are."""
    wrong, seen = list[str](), dict[Id, dict]()
    for number, one in enumerate(entries, 1):
        own = _id(one.get("id"))
        about = f"annotation number {number}" if own is None else f"annotation {own}"
        if own is not None and seen.setdefault(own, one) is not one and seen[own] == one:
            continue  # the same twice
        try:
            yield _object(one, about, categories)
        except ValueError as error:
            wrong.append(f"{about} {error}")
    if wrong:
        raise ValueError(wrong[0] + (f" (and {len(wrong) - 1} more are wrong)" if len(wrong) > 1 else ""))


def _object(one: dict, about: str, categories: dict[Id, str]) -> _Object:
    image, category = _id(one.get("image_id")), _id(one.get("category_id"))
    if image is None:
        raise ValueError(f"has the image_id {_shown(one, 'image_id')}, not a number or text")
    if category not in categories or category is None:
        raise ValueError(
            f"has the category_id {_shown(one, 'category_id')}, which is none of the categories: {_some(categories)}"
        )
    given = one.get("bbox")
    box = [_number(value) for value in given] if isinstance(given, list) else []
    sides = [value for value in box if value is not None]
    if len(box) != 4 or len(sides) != 4:
        raise ValueError(f"has the bbox {_shown(one, 'bbox')}, not four finite numbers [x, y, width, height]")
    if min(sides[2:]) < 0:
        raise ValueError(f"has the bbox {_shown(one, 'bbox')}, whose width or height is negative")
    flag = one.get("iscrowd")
    crowd = int(bool(flag)) if isinstance(flag, (bool, NoneType)) else _number(flag)
    if crowd not in (0, 1):
        raise ValueError(f"has the iscrowd {_shown(one, 'iscrowd')}, not 0 or 1")
    shape = one.get("segmentation") or None
    if not (shape is None or isinstance(shape, list) or (isinstance(shape, dict) and {"size", "counts"} <= set(shape))):
        raise ValueError(f"has the segmentation {_shown(one, 'segmentation')}, neither polygons nor run lengths")
    return _Object(about, image, category, tuple(sides), bool(crowd), shape)


def _mask(one: _Object, height: int, width: int) -> Tensor:
    try:
        return mask_of(one.segmentation, height, width)
    except Exception as error:  # pycocotools raises nearly anything
        raise ValueError(f"the segmentation of {one.about} cannot be read: {first_line(error)}") from None


def _coco_names(names: dict[Id, str]) -> list[str]:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    coco = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [coco[int(category)] for category in sorted(names, key=_order)]


def _id(value: object) -> Id | None:
    """An id: whole numbers, also where they are text or end in .0, or other text."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdecimal() else text or None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def _order(value: Id) -> tuple[bool, Id]:
    return isinstance(value, str), value


def _number(value: object) -> float | None:
    """A finite number, also where it is text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= MAX else None


def _side(value: object) -> int | None:
    number = _number(value)
    return int(number) if number and number >= 1 else None


def _shown(one: dict, key: str) -> str:
    """A value for a message, cut to a length that fits."""
    text = json.dumps(one[key]) if key in one else "missing"
    return text if len(text) < 60 else text[:56] + " ..."


def _some(known: Iterable[Id]) -> str:
    ids = [str(one) for one in sorted(known, key=_order)]
    return ", ".join(ids[:4]) + (f" to {ids[-1]}" if len(ids) > 4 else "")


def _tail(file: str) -> str:
    return PurePosixPath(file.replace("\\", "/")).name


def _safe(file: str) -> str:
    """The name of an image as a relative path that stays below any folder."""
    parts = PurePosixPath(file.replace("\\", "/")).parts
    return "/".join(part for part in parts if part not in ("/", "..", ".") and not part.endswith(":")) or "image"
