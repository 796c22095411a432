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


OBJECT = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object>"


def voc(root, objects=OBJECT, head="", encode=str.encode, listed="0001\n", suffix=".jpg"):
    """One image in VOC's layout."""
    save(root / "JPEGImages" / f"0001{suffix}")
    (root / "Annotations").mkdir()
    (root / "Annotations" / "0001.xml").write_bytes(encode(f"<annotation>{head}{objects}</annotation>"))
    if listed is not None:
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "val.txt").write_text(listed)
    return root


@pytest.mark.parametrize("under", ["", "VOC2012", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"listed": "\n0001\r\n\n"},
        {"listed": "0001  1\n0001  1\n"},
        {"listed": None},
        {"suffix": ".png"},
        {"suffix": ".JPG"},
        {"head": "<filename>other.jpg</filename><size><width>0</width><height>0</height></size>"},
        {"head": "<size><width>30</width><height>20</height></size>"},
        {"objects": OBJECT.replace(">10<", ">10.0<").replace(">cat<", "> cat\n<")},
        {
            "objects": OBJECT.replace(
                "<bndbox>", "<difficult></difficult><pose>Left</pose><part><name>head</name></part><bndbox>"
            )
        },
        {"encode": lambda text: text.encode("utf-8-sig")},
        {"encode": lambda text: text.encode("utf-16")},
        {"encode": lambda text: f"<?xml version='1.0' encoding='utf-8'?>{text}".encode()},
    ],
)
def test_voc_is_read_as_people_write_it(tmp_path, under, facts):
    (tmp_path / under).mkdir(parents=True, exist_ok=True)
    voc(tmp_path / under, **facts)
    data = load_data("voc", tmp_path)
    assert len(data) == 1 and data.classes[7] == "cat"
    assert data[0].boxes.tolist() == [[0, 1, 10, 20]] and data[0].labels.tolist() == [7] and not data[0].crowd.any()


def test_voc_classes_of_ones_own_follow_the_twenty(tmp_path):
    names = ("zebra", "cat", "hélicoptère")
    objects = "".join(OBJECT.replace("cat", name) for name in names)
    data = load_data("voc", voc(tmp_path, objects, encode=lambda text: text.encode("latin-1")))
    assert data.classes[20:] == ["hélicoptère", "zebra"] and data[0].present == [7, 20, 21]
    assert [data.classes[label] for label in data[0].labels] == list(names)


def test_voc_images_without_objects_are_annotated(tmp_path):
    assert load_data("voc", voc(tmp_path, ""))[0].annotated


@pytest.mark.parametrize(
    "objects, words",
    [
        (OBJECT.replace("<name>cat</name>", ""), "object 1 has no name"),
        (OBJECT.replace("cat", " "), "object 1 has no name"),
        (OBJECT + "<object><name>dog</name></object>", r"object 2 \(dog\) has no bndbox"),
        (
            OBJECT.replace("<xmin>1</xmin>", ""),
            r"object 1 \(cat\) has a bndbox that is not four finite numbers: xmin None",
        ),
        (OBJECT.replace(">10<", ">wide<"), "object 1 .* xmax 'wide'"),
        (OBJECT.replace(">10<", ">nan<"), "object 1 .* xmax 'nan'"),
        (OBJECT.replace(">10<", ">1e99<"), "object 1 .* xmax '1e99'"),
        (OBJECT.replace(">10<", ">-10<"), "object 1 .* ends before it begins: 1, 2, -10, 20"),
        (OBJECT[:-3], "0001.xml is not XML"),
    ],
)
def test_a_wrong_object_is_named_when_its_image_is_read(tmp_path, objects, words):
    data = load_data("voc", voc(tmp_path, objects))
    with pytest.raises(ImageError, match=rf"0001\.xml.*{words}|{words}") as error:
        data[0]
    assert "\n" not in str(error.value) and "0001.xml" in str(error.value)


def test_voc_annotations_of_another_image_or_none_raise_when_they_are_read(tmp_path):
    data = load_data("voc", voc(tmp_path, head="<size><width>60</width><height>40</height></size>"))
    with pytest.raises(ImageError, match=r"0001\.jpg is 30x20, but .*0001\.xml says 60x40"):
        data[0]
    (tmp_path / "JPEGImages" / "0001.jpg").unlink()
    with pytest.raises(ImageError, match=r"0001\.jpg does not exist"):
        load_data("voc", tmp_path)[0]
    (tmp_path / "Annotations" / "0001.xml").unlink()
    with pytest.raises(ImageError, match=r"cannot read .*0001\.xml"):
        load_data("voc", tmp_path)[0]


@pytest.mark.parametrize("listed, words", [("", "names no image"), (None, "cannot read .*val.txt: .*there are train")])
def test_a_voc_split_that_is_missing_or_empty_raises(tmp_path, listed, words):
    lists = voc(tmp_path, listed=listed or "") / "ImageSets" / "Main"
    if listed is None:
        (lists / "val.txt").rename(lists / "train.txt")
    with pytest.raises(LoraCompError, match=words):
        load_data("voc", tmp_path)


def cityscapes(root, ids):
    save(root / "leftImg8bit" / "val" / "bonn" / "bonn_1_2_leftImg8bit.png")
    for stray in (
        "leftImg8bit/val/.ipynb_checkpoints/bonn_1_2_leftImg8bit.png",
        "leftImg8bit/val/bonn/._x_leftImg8bit.png",
    ):
        save(root / stray)
    (root / "leftImg8bit" / "val" / ".DS_Store").write_text("")
    (root / "leftImg8bit" / "val" / "bonn" / "Thumbs.db").write_text("")
    folder = root / "gtFine" / "val" / "bonn"
    folder.mkdir(parents=True)
    if isinstance(ids, np.ndarray):
        Image.fromarray(ids).save(folder / "bonn_1_2_gtFine_instanceIds.png")
    elif ids is not None:
        (folder / "bonn_1_2_gtFine_instanceIds.png").write_bytes(ids)
    return root


def test_cityscapes_ignores_what_is_hidden(tmp_path):
    data = load_data("cityscapes", cityscapes(tmp_path, np.full((20, 30), 26001, np.uint16)))
    assert len(data) == 1 and data[0].boxes.tolist() == [[0, 0, 30, 20]]


@pytest.mark.parametrize(
    "ids, words",
    [
        (None, "instanceIds.png does not exist"),
        (b"", "cannot be read as instance ids"),
        (b"no image", "cannot be read as instance ids"),
        (np.zeros((10, 30), np.uint16), "is 30x10, but its image is 30x20"),
        (np.zeros((20, 30, 3), np.uint8), "is 3x30x20, but its image is 30x20"),
    ],
)
def test_wrong_instance_ids_raise_when_their_image_is_read(tmp_path, ids, words):
    data = load_data("cityscapes", cityscapes(tmp_path, ids))
    with pytest.raises(ImageError, match=words) as error:
        data[0]
    assert "\n" not in str(error.value)


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
