"""Files of COCO annotations as people have them: read as what they mean, or refused in one line with the id."""

import copy
import gzip
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from lora_comp import LoraCompError, load_data
from lora_comp.data.coco import COCO_IDS
from lora_comp.data.masks import mask_of
from lora_comp.errors import ImageError

SQUARE = [[2, 3, 12, 3, 12, 8, 2, 8]]
CONTENT = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (7, 9)],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [2, 3, 10, 5], "iscrowd": 0, "segmentation": SQUARE},
        {
            "id": 2,
            "image_id": 7,
            "category_id": 17,
            "bbox": [0, 0, 1, 20],
            "iscrowd": 1,
            "segmentation": {"size": [20, 30], "counts": [0, 20, 580]},
        },
        {"id": 3, "image_id": 9, "category_id": 17, "bbox": [1.5, 2, 3, 4.5], "iscrowd": 0, "segmentation": SQUARE},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
}


def write(root, change=None, encode=lambda text: text.encode(), name="instances.json"):
    """A data set of two images, its annotations changed in place by `change`."""
    content = copy.deepcopy(CONTENT)
    content = (change and change(content)) or content
    (root / "images").mkdir(exist_ok=True, parents=True)
    for i in (7, 9):
        Image.new("RGB", (30, 20), "teal").save(root / "images" / f"{i}.png")
    (root / name).write_bytes(encode(json.dumps(content, ensure_ascii=False)))
    return root


def every(kind, **values):
    """Change values of all entries of a kind: a value, or a function of the entry."""

    def change(content):
        for one in content[kind]:
            one.update({key: value(one) if callable(value) else value for key, value in values.items()})

    return change


def first(kind, **values):
    return lambda content: content[kind][0].update(values)


def without(kind, *keys):
    def change(content):
        for one in content[kind]:
            for key in keys:
                one.pop(key, None)

    return change


def both(*changes):
    return lambda content: [change(content) for change in changes] and None


def same(sample, other):
    assert sample.labels.tolist() == other.labels.tolist() and sample.crowd.tolist() == other.crowd.tolist()
    assert torch.equal(sample.boxes, other.boxes) and torch.equal(sample.masks, other.masks)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return load_data("coco", write(tmp_path_factory.mktemp("plain")))


@pytest.mark.parametrize(
    "change",
    [
        every("images", id=lambda one: str(one["id"])),
        every("images", id=lambda one: f" {one['id']:012d} "),
        every("images", id=lambda one: float(one["id"])),
        every("annotations", image_id=lambda one: str(one["image_id"])),
        every("annotations", image_id=lambda one: float(one["image_id"])),
        every("annotations", category_id=lambda one: str(one["category_id"])),
        every("annotations", id=lambda one: str(one["id"])),
        every("annotations", id=None),
        every("annotations", id=lambda one: f"a-{one['id']}"),
        every("categories", id=lambda one: str(one["id"])),
        both(
            every("images", id=lambda one: f"image_{one['id']}"),
            every("annotations", image_id=lambda one: f"image_{one['image_id']}"),
        ),
        every("annotations", bbox=lambda one: [str(number) for number in one["bbox"]]),
        every("annotations", iscrowd=lambda one: str(one["iscrowd"])),
        every("annotations", iscrowd=lambda one: bool(one["iscrowd"])),
        every("annotations", iscrowd=lambda one: one["iscrowd"] or None),
        without("annotations", "id", "area"),
        without("images", "height", "width"),
        without("images", "height"),
        every("images", height=None, width=None),
        every("images", height=0, width=-1),
        every("images", height="20", width="30"),
        every("images", file_name=lambda one: f"images\\{one['file_name']}"),
        every("images", file_name=lambda one: f"C:\\data\\{one['file_name']}"),
        every("images", file_name=lambda one: f"/home/me/data/{one['file_name']}"),
        every("images", file_name=lambda one: f"./{one['file_name']}"),
        both(
            every("images", coco_url=lambda one: f"http://images/val2017/{one['file_name']}"),
            without("images", "file_name"),
        ),
        lambda content: content["images"].append(content["images"][0]),
        lambda content: content["annotations"].append(content["annotations"][2]),
        lambda content: content["categories"].append(content["categories"][0]),
        lambda content: content["annotations"][0].update(segmentation=SQUARE[0]),
        lambda content: content["annotations"][0].update(segmentation=[[str(x) for x in SQUARE[0]]]),
        lambda content: content["annotations"][0].update(segmentation=[*SQUARE, [1, 1, 2, 2]]),
    ],
)
def test_what_can_mean_one_thing_alone_is_read_as_that(tmp_path, plain, change):
    data = load_data("coco", write(tmp_path, change))
    assert data.classes == ["cat", "dog"] and len(data) == 2 and data.notes == []
    for i in range(2):
        same(data[i], plain[i])


@pytest.mark.parametrize(
    "encode, name",
    [
        (lambda text: text.encode("utf-8-sig"), "instances.json"),
        (lambda text: text.encode("utf-16"), "instances.json"),
        (lambda text: text.encode("latin-1"), "instances.json"),
        (lambda text: gzip.compress(text.encode()), "instances.json"),
        (lambda text: gzip.compress(text.encode()), "instances.json.gz"),
    ],
)
def test_a_file_may_have_another_encoding_or_be_gzipped(tmp_path, plain, encode, name):
    data = load_data("coco", write(tmp_path, first("categories", name="dög"), encode, name))
    assert data.classes == ["cat", "dög"]
    same(data[0], plain[0])


@pytest.mark.parametrize(
    "change, words",
    [
        (first("annotations", bbox=[]), r"annotation 1 has the bbox \[\], not four finite numbers"),
        (first("annotations", bbox=None), "annotation 1 has the bbox null"),
        (without("annotations", "bbox"), r"annotation 1 has the bbox missing, .* \(and 2 more are wrong\)"),
        (first("annotations", bbox=[1, 2, 3]), r"annotation 1 has the bbox \[1, 2, 3\]"),
        (first("annotations", bbox=[1, 2, 3, 4, 5]), "annotation 1 has the bbox"),
        (first("annotations", bbox={"x": 1}), "annotation 1 has the bbox"),
        (first("annotations", bbox="1,2,3,4"), "annotation 1 has the bbox"),
        (first("annotations", bbox=[1, 2, "wide", 4]), "annotation 1 has the bbox"),
        (first("annotations", bbox=[float("nan"), 2, 3, 4]), r"annotation 1 has the bbox \[NaN, 2, 3, 4\]"),
        (first("annotations", bbox=[1, 2, float("inf"), 4]), "annotation 1 has the bbox"),
        (first("annotations", bbox=[1, 2, 10**400, 4]), "annotation 1 has the bbox"),
        (first("annotations", bbox=[1, True, 3, 4]), "annotation 1 has the bbox"),
        (first("annotations", bbox=[[1, 2, 3, 4]]), "annotation 1 has the bbox"),
        (first("annotations", bbox=[9, 9, -3, 4]), "annotation 1 has the bbox .* negative"),
        (first("annotations", category_id=999), "annotation 1 has the category_id 999, which is none of .*: 17, 18"),
        (first("annotations", category_id=None), "annotation 1 has the category_id null"),
        (first("annotations", category_id=[18]), "annotation 1 has the category_id"),
        (without("annotations", "category_id"), "annotation 1 has the category_id missing"),
        (without("annotations", "id", "category_id"), "annotation number 1 has the category_id missing"),
        (without("annotations", "image_id"), "annotation 1 has the image_id missing"),
        (first("annotations", image_id=7.5), "annotation 1 has the image_id 7.5"),
        (first("annotations", iscrowd=2), "annotation 1 has the iscrowd 2, not 0 or 1"),
        (first("annotations", iscrowd="yes"), 'annotation 1 has the iscrowd "yes"'),
        (first("annotations", segmentation="polygon"), 'annotation 1 has the segmentation "polygon"'),
        (first("annotations", segmentation={"counts": []}), "annotation 1 has the segmentation"),
        (first("annotations", segmentation=7), "annotation 1 has the segmentation 7"),
        (
            every("annotations", image_id=0),
            "none of its 3 annotations belongs .*: annotation 1 has image_id 0, .* 7, 9",
        ),
        (every("annotations", bbox=[0.1, 0.2, 0.5, 0.5]), "they must be in pixels"),
        (first("images", id=9), "7.png and 9.png have the same image id 9"),
        (first("images", file_name="9.png"), "the images 7 and 9 are the same file 9.png"),
        (first("images", id=None), "the id of image number 1 is null"),
        (without("images", "id"), "the id of image number 1 is missing"),
        (without("images", "file_name"), "image 7 has no file_name"),
        (first("images", file_name=""), "image 7 has no file_name"),
        (first("images", file_name=7), "image 7 has no file_name"),
        (first("categories", id=17), "the categories dog and cat have the same id 17"),
        (without("categories", "name"), "category 18 has no name"),
        (first("categories", name=None), "category 18 has no name"),
        (first("categories", id={}), "the id of category number 1"),
        (lambda content: content.update(images=[]), "its list of images is empty"),
        (lambda content: content.update(images=None), "its images are no list of objects"),
        (lambda content: content.update(annotations={"1": {}}), "its annotations are no list of objects"),
        (lambda content: content.update(categories=["cat"]), "its categories are no list of objects"),
        (lambda content: content.update(categories=[]), "its list of categories is empty"),
        (lambda content: content["annotations"], "cannot be read as COCO annotations: it is a list"),
        (lambda content: [{"image_id": 7, "score": 1}], "cannot be read as COCO annotations: it is detections"),
        (lambda content: "text", "cannot be read as COCO annotations"),
    ],
)
def test_anything_else_is_refused_in_one_line_that_names_it(tmp_path, change, words):
    with pytest.raises(LoraCompError, match=words) as error:
        load_data("coco", write(tmp_path, change))
    assert "\n" not in str(error.value) and "instances.json" in str(error.value)


@pytest.mark.parametrize("cut", [3, 40])
def test_a_cut_gzip_file_is_refused_in_one_line(tmp_path, cut):
    with pytest.raises(LoraCompError, match="cannot be read as COCO annotations"):
        load_data("coco", write(tmp_path, encode=lambda text: gzip.compress(text.encode())[:-cut]))


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, None, 4, 5, 6]],
        [["a"] * 6],
        [{"x": 1}],
        {"size": [30, 20], "counts": [0, 600]},
        {"size": [20, 30], "counts": [0, 599]},
        {"size": [20, 30], "counts": [700, -100]},
        {"size": [20, 30], "counts": "zzz"},
        {"size": [20, 30], "counts": None},
    ],
)
def test_a_wrong_mask_is_named_when_its_image_is_read(tmp_path, plain, segmentation):
    data = load_data("coco", write(tmp_path, first("annotations", segmentation=segmentation)))
    with pytest.raises(ImageError, match=r"instances\.json: the segmentation of annotation 1 cannot be read") as error:
        data[0]
    assert "\n" not in str(error.value)
    same(data[1], plain[1])


def test_what_is_left_out_or_doubtful_is_noted(tmp_path):
    def change(content):
        content["annotations"][1]["image_id"] = 5
        content["annotations"][2]["bbox"] = [20, 10, 28, 19]

    data = load_data("coco", write(tmp_path, change))
    orphan, beyond = data.notes
    assert "1 of 3 annotations belong to no image in it and are left out, as annotation 2" in orphan
    assert "1 of 3 annotations reach beyond their images" in beyond and "annotation 3" in beyond
    assert [len(data[i].boxes) for i in range(2)] == [1, 1]


def test_annotations_of_one_id_all_count(tmp_path, plain):
    data = load_data("coco", write(tmp_path, every("annotations", id=1)))
    assert ["2 annotations have the id of another; all count" in note for note in data.notes] == [True]
    same(data[0], plain[0])


def test_a_file_without_objects_annotates_nothing(tmp_path):
    data = load_data("coco", write(tmp_path, lambda content: content.update(annotations=[])))
    assert not data[0].annotated and "annotates no object" in data.notes[0]


def test_objects_without_masks_and_of_no_size_are_read(tmp_path):
    def change(content):
        for one, segmentation in zip(content["annotations"], (None, [], ""), strict=True):
            one.update(segmentation=segmentation, bbox=[3, 4, 0, 5])

    sample = load_data("coco", write(tmp_path, change))[0]
    assert sample.boxes.tolist() == [[3, 4, 3, 9]] * 2 and len(sample.masks) == 0


def test_lvis_says_where_an_image_is_by_its_address_alone(tmp_path):
    def change(content):
        for one in content["images"]:
            one["coco_url"] = f"http://images.cocodataset.org/train2017/{one.pop('file_name')}"

    (write(tmp_path, change) / "images").rename(tmp_path / "train2017")
    assert [load_data("coco", tmp_path)[i].name for i in range(2)] == ["train2017/7.png", "train2017/9.png"]


@pytest.mark.parametrize("name", ["../7.png", "/tmp/x/../7.png", "..\\..\\7.png", "C:/a/7.png"])
def test_the_name_of_a_sample_stays_below_any_folder(tmp_path, name):
    """Files of a run are named by it."""
    sample = load_data("coco", write(tmp_path, first("images", file_name=name)))[0]
    assert ".." not in sample.name and not sample.name.startswith("/") and ":" not in sample.name


@pytest.mark.parametrize(
    "file, images, path",
    [
        ("instances.json", "images", "instances.json"),
        ("annotations/instances_val2017.json", "val2017", "annotations/instances_val2017.json"),
        ("annotations/mine.json", "images", "annotations/mine.json"),
        ("mine.json.gz", ".", "mine.json.gz"),
        ("valid/_annotations.coco.json", "valid", "."),
        ("val/_annotations.coco.json", "val", "."),
        ("_annotations.coco.json", ".", "."),
    ],
)
def test_the_file_itself_and_exports_with_images_beside_it_are_read(tmp_path, plain, file, images, path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / images).mkdir(exist_ok=True)
    write(tmp_path / "set")
    for image in (tmp_path / "set" / "images").iterdir():
        image.rename(tmp_path / images / image.name)
    (tmp_path / "set" / "instances.json").rename(tmp_path / file)
    same(load_data("coco", tmp_path / path)[0], plain[0])


def test_a_file_with_cocos_ids_has_cocos_classes_in_any_language(tmp_path):
    names = {one: f"Klasse {one}" for one in sorted(COCO_IDS)}
    data = load_data(
        "coco", write(tmp_path, lambda c: c.update(categories=[{"id": i, "name": n} for i, n in names.items()]))
    )
    assert (len(data.classes), data.classes[0], data.classes[16], data.classes[-1]) == (
        80,
        "person",
        "dog",
        "toothbrush",
    )


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["images", "annotations", "categories"]),
    which=st.integers(0, 1),
    key=st.sampled_from(
        ["id", "image_id", "category_id", "bbox", "iscrowd", "segmentation", "file_name", "height", "name"]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=8,
    ),
)
def test_any_value_is_read_or_refused_in_one_line(tmp_path_factory, kind, which, key, value):
    root = write(tmp_path_factory.mktemp("any"), lambda content: content[kind][which].update({key: value}))
    try:
        data = load_data("coco", root)
        for i in range(len(data)):
            sample = data[i]
            assert torch.isfinite(sample.boxes).all()
    except LoraCompError as error:
        assert "\n" not in str(error)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 40), width=st.integers(1, 40), share=st.floats(0, 1))
def test_run_lengths_are_those_of_pycocotools(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    if seed % 2:  # long runs, whose numbers take several characters
        mask = np.sort(mask, axis=0)
    coded = rle.encode(np.asfortranarray(mask, np.uint8))
    read = mask_of({"size": [height, width], "counts": coded["counts"].decode()}, height, width)
    assert np.array_equal(read.numpy(), mask)
