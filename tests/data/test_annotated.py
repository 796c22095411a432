"""COCO, Pascal VOC and Cityscapes: images, boxes, masks and errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lora_comp import LoraCompError, load_data
from lora_comp.errors import ImageError


def save(path, height=20, width=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "teal").save(path)


def coco(root, images="val2017", file="annotations/instances_val2017.json"):
    """Two images: one with a dog (a polygon) and a crowd of cats (run lengths), one without objects."""
    annotations = [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 18,
            "bbox": [2, 3, 10, 5],
            "area": 50,
            "iscrowd": 0,
            "segmentation": [[2, 3, 12, 3, 12, 8, 2, 8]],
        },
        {
            "id": 2,
            "image_id": 7,
            "category_id": 17,
            "bbox": [0, 0, 1, 20],
            "area": 20,
            "iscrowd": 1,
            "segmentation": {"size": [20, 30], "counts": [0, 20, 580]},
        },
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (7, 9)],
        "annotations": annotations,
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    }
    for i in (7, 9):
        save(root / images / f"{i}.png")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    "images, file",
    [
        ("val2017", "annotations/instances_val2017.json"),
        ("images/val2017", "annotations/instances_val2017.json"),
        ("images", "instances.json"),
    ],
)
def test_coco_reads_boxes_labels_masks_and_crowds_in_each_layout(tmp_path, images, file):
    data = load_data("coco", coco(tmp_path, images, file))
    assert (len(data), data.classes) == (2, ["cat", "dog"])  # by rising id
    sample = data[0]
    assert sample.annotated and sample.labels.tolist() == [1, 0] and sample.crowd.tolist() == [False, True]
    assert sample.boxes.tolist() == [[2, 3, 12, 8], [0, 0, 1, 20]]
    assert sample.masks.sum((1, 2)).tolist() == [50, 20] and sample.masks[0, 3:8, 2:12].all()
    assert data[1].annotated and data[1].boxes.shape == (0, 4)  # no object, but annotated


def test_a_missing_image_raises_when_it_is_read(tmp_path):
    (coco(tmp_path) / "val2017" / "7.png").unlink()
    data = load_data("coco", tmp_path)
    assert data[1].name == "9.png"
    with pytest.raises(ImageError, match=r"7\.png does not exist, though .*instances_val2017\.json names it"):
        data[0]


def test_annotations_of_another_image_size_raise(tmp_path):
    save(coco(tmp_path) / "val2017" / "7.png", 40, 60)
    with pytest.raises(ImageError, match=r"7\.png is 60x40, but .* says 30x20"):
        load_data("coco", tmp_path)[0]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot be read as COCO annotations"),
        ("[]", "cannot be read as COCO annotations"),
        ('{"images": []}', "has no annotations and no categories"),
    ],
)
def test_other_json_files_raise_a_one_line_error(tmp_path, content, message):
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(LoraCompError, match=message) as error:
        load_data("coco", tmp_path)
    assert "\n" not in str(error.value)


def test_missing_data_raises_a_one_line_error(tmp_path):
    for name, words in (
        ("coco", "has no COCO annotations"),
        ("voc", "is not Pascal VOC's layout"),
        ("cityscapes", "is not Cityscapes' layout"),
    ):
        with pytest.raises(LoraCompError, match=words) as error:
            load_data(name, tmp_path)
        assert "\n" not in str(error.value)
        with pytest.raises(LoraCompError, match="needs the path of its folder"):
            load_data(name)
    for image in (coco(tmp_path) / "val2017").iterdir():
        image.unlink()
    with pytest.raises(LoraCompError, match="holds none of the 2 images"):
        load_data("coco", tmp_path)


def test_voc_reads_zero_based_boxes_and_difficult_objects_as_crowd(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2007"
    save(root / "JPEGImages" / "0001.jpg")
    for folder, name, text in (
        ("ImageSets/Main", "val.txt", "0001\n"),
        (
            "Annotations",
            "0001.xml",
            "<annotation>"
            + "".join(
                f"<object><name>{kind}</name><difficult>{hard}</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>"
                f"<xmax>10</xmax><ymax>20</ymax></bndbox></object>"
                for kind, hard in (("cat", 0), ("dog", 1))
            )
            + "</annotation>",
        ),
    ):
        (root / folder).mkdir(parents=True)
        (root / folder / name).write_text(text)
    [sample] = [load_data("voc", tmp_path)[0]]
    assert sample.boxes.tolist() == [[0, 1, 10, 20]] * 2  # pixels 1 to 10
    assert sample.labels.tolist() == [7, 11] and sample.crowd.tolist() == [False, True]


def test_cityscapes_reads_instances_and_groups_as_crowd(tmp_path):
    save(tmp_path / "leftImg8bit" / "val" / "bonn" / "bonn_1_2_leftImg8bit.png")
    ids = np.zeros((20, 30), np.int32)
    ids[:, :9], ids[4:8, 10:15], ids[10:12, 10:12], ids[15:, 20:] = 7, 26000, 26001, 24  # road, two cars, a crowd
    folder = tmp_path / "gtFine" / "val" / "bonn"
    folder.mkdir(parents=True)
    Image.fromarray(ids.astype(np.uint16)).save(folder / "bonn_1_2_gtFine_instanceIds.png")
    sample = load_data("cityscapes", tmp_path)[0]
    assert [load_data("cityscapes", tmp_path).classes[i] for i in sample.labels] == ["person", "car", "car"]
    assert sample.boxes.tolist() == [[20, 15, 30, 20], [10, 4, 15, 8], [10, 10, 12, 12]]
    assert sample.crowd.tolist() == [True, False, False]
    assert torch.equal(sample.masks.sum((1, 2)), torch.tensor([50, 20, 4]))


@pytest.mark.data
def test_coco_reads_real_images(shared):
    data = load_data("coco", shared / "data" / "coco96")
    assert (len(data), len(data.classes), data.classes[0]) == (96, 80, "person")
    assert sum(len(data[i].boxes) for i in range(3)) > 0 and data[0].masks.shape[1:] == data[0].image.shape[1:]
