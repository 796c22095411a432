"""det and seg: what is scored, and how, with a detector that sees bright squares."""

import json

import pytest
import torch
from rich.progress import Progress
from torch import nn
from torch.nn import functional as F

import lora_comp as lc
from lora_comp.data import Sample
from lora_comp.evaluate import Point, evaluate
from lora_comp.methods import FitSettings
from lora_comp.tasks import det
from lora_comp.tasks.average_precision import average_precision, objects

ONE = pytest.approx(1)


class Squares(nn.Module):
    """Finds what is brighter than a half, as one object of class 0 or, where it is red, of class 1."""

    name, classes, has_masks, published_scale, stage_variance = "squares", ["grey", "red"], True, None, None

    def stages(self, x):
        return [F.avg_pool2d(x, 4), F.avg_pool2d(x, 8)]

    def detect(self, x):
        return [self._one(image) for image in x]

    def _one(self, image):
        mask = image[0] > 0.5
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        n = int(len(rows) > 0)
        box = [[columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1]] if n else []
        return {
            "boxes": torch.tensor(box, dtype=torch.float32).reshape(-1, 4),
            "scores": torch.full((n,), 0.9),
            "labels": torch.full((n,), int(n and image[1][mask].mean() < 0.5)),
            "masks": mask[None][:n],
        }


def square(name, side=32, red=False, **known):
    """An image of a square at (16, 16), annotated with a box and a mask."""
    image, mask = torch.full((3, 64, 64), 0.1), torch.zeros(1, 64, 64, dtype=torch.bool)
    image[: 1 if red else 3, 16 : 16 + side, 16 : 16 + side] = 0.9
    mask[0, 16 : 16 + side, 16 : 16 + side] = True
    facts = dict(
        boxes=torch.tensor([[16.0, 16, 16 + side, 16 + side]]),
        masks=mask,
        labels=torch.tensor([int(red)]),
        annotated=True,
    )
    return Sample(name, image, **(facts | known))


@pytest.fixture(params=["det", "seg"])
def task(request, monkeypatch):
    monkeypatch.setattr(det, "load_detector", lambda *arguments: Squares())
    return lc.load_task(request.param)


def test_the_published_distance_is_weighed_as_published_and_that_in_variances_as_a_classifiers(task, monkeypatch):
    classifier = lc.load_task("cls")
    assert [task.weight(q) for q in (1, 2.5, 6)] == [classifier.weight(q) for q in (1, 2.5, 6)]
    monkeypatch.setattr(Squares, "published_scale", 0.2)
    published = lc.load_task(task.name)
    assert [published.weight(q) for q in (1, 2, 3, 4)] == [pytest.approx(1 / x) for x in (2, 1, 0.5, 0.2)]


def test_what_is_decoded_as_it_was_scores_one_and_what_is_not_scores_less(task):
    sample = square("a")
    measured = task.measure(sample.image, sample)
    assert measured["score"] == measured["mAP"] == ONE and measured["feature_distance"] == 0
    shifted = task.measure(sample.image.roll(6, 2), sample)
    assert 0 < shifted["score"] < 0.9 and shifted["AP50"] == ONE and shifted["feature_distance"] > 0
    assert task.measure(torch.zeros(3, 64, 64), sample)["score"] == 0


def test_the_score_of_images_together_is_cocos_and_not_the_mean(task):
    """A class counts once, however many images show it."""
    shown = [task.measure(s.image, s)["objects"] for s in (square("a"), square("b"), square("c", red=True))]
    shown[2]["detections"] = []
    assert task.pool(shown)["mAP"] == pytest.approx(0.5)
    assert json.loads(json.dumps(shown)) == shown


def test_without_annotations_the_networks_own_answer_on_the_original_is_the_truth(task):
    unknown = square("a", boxes=torch.zeros(0, 4), masks=torch.zeros(0), labels=torch.zeros(0), annotated=False)
    measured = task.measure(unknown.image, unknown)
    assert measured["agreement"] == ONE and "mAP" not in measured
    assert task.measure(unknown.image.roll(8, 1), unknown)["agreement"] < 0.9


def test_a_crowd_is_neither_found_nor_missed(task):
    crowd = square("a", crowd=torch.tensor([True]))
    shown = [task.measure(s.image, s)["objects"] for s in (square("b"), crowd)]
    assert task.pool(shown)["mAP"] == ONE
    shown[1]["detections"] = []
    assert task.pool(shown)["mAP"] == ONE


def test_the_answer_names_the_classes(task):
    assert [task.answer(s.image) for s in (square("a"), square("b", red=True))] == ["grey", "red"]
    assert task.answer(torch.zeros(3, 64, 64)) == "nothing"


def test_objects_are_matched_by_the_names_of_their_classes(task):
    """Whatever the order and number of the data set's classes."""
    own = square("a", red=True, labels=torch.tensor([1]))
    for classes in (["grey", "red"], ["green", "Red"], ["zebra", "RED", "grey"], ["grey_", "red-"]):
        known = square("a", red=True, labels=torch.tensor([1]), classes=classes)
        assert (
            task.measure(own.image.roll(6, 2), known)["objects"]["truth"]
            == task.measure(own.image, own)["objects"]["truth"]
        )
    swapped = square("a", red=True, labels=torch.tensor([0]), classes=["red", "grey"])
    assert task.measure(own.image, swapped)["mAP"] == ONE
    assert task.notes("set", swapped) == []


def test_objects_of_other_classes_are_left_out_and_noted(task):
    boxes = torch.tensor([[16.0, 16, 48, 48], [0, 0, 9, 9]])
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 16:48, 16:48] = masks[1, :9, :9] = True
    facts = dict(boxes=boxes, masks=masks, labels=torch.tensor([1, 0]), classes=["zebra", "grey"])
    measured = task.measure(square("a").image, square("a", **facts))
    assert measured["mAP"] == ONE and len(measured["objects"]["truth"]) == 1
    [note] = task.notes("set", square("a", **facts))
    assert note.startswith("the network squares has no class for zebra of set: their objects are left out")


def test_detections_of_classes_that_are_not_annotated_are_left_out(task):
    seen = square("a", red=True, boxes=torch.zeros(0, 4), masks=torch.zeros(0), labels=torch.zeros(0), classes=["grey"])
    assert task.measure(seen.image, seen)["mAP"] == 1
    both = square(
        "a", red=True, boxes=torch.zeros(0, 4), masks=torch.zeros(0), labels=torch.zeros(0), classes=["grey", "red"]
    )
    assert task.measure(both.image, both)["mAP"] == 0


def test_where_no_class_fits_the_score_is_agreement(task):
    other = square("a", classes=["zebra"], labels=torch.tensor([0]))
    measured = task.measure(other.image, other)
    assert measured["score"] == measured["agreement"] == ONE and "mAP" not in measured
    [note] = task.notes("set", other)
    assert "no class for zebra of set: the score is agreement with its own detections" in note


def test_where_no_object_is_of_a_class_that_fits_the_score_is_agreement_too(task):
    facts = dict(classes=["zebra", "grey"], labels=torch.tensor([0]))
    assert task.measure(square("a").image, square("a", **facts))["score"] == 0  # another image may have a grey one
    measured = task.measure(square("a").image, square("a", present=[0], **facts))
    assert measured["score"] == measured["agreement"] == ONE
    [note] = task.notes("set", square("a", present=[0], **facts))
    assert "no class for zebra of set: the score is agreement" in note
    only_known = square("a", classes=["zebra", "grey"], labels=torch.tensor([1]), present=[1])
    assert task.measure(only_known.image, only_known)["mAP"] == ONE and task.notes("set", only_known) == []


def test_a_table_names_the_classes_of_objects(monkeypatch):
    monkeypatch.setattr(det, "load_detector", lambda *arguments: Squares())
    zebra = square("a", classes=["zebra"], labels=torch.tensor([0]))
    for table in ({"zebra": "grey"}, "{zebra: 0}"):
        task = lc.load_task("det", classes=table)
        assert task.measure(zebra.image, zebra)["mAP"] == ONE and task.notes("set", zebra) == []
    assert lc.load_task("det", classes="{zebra: red}").measure(zebra.image, zebra)["mAP"] == 0


def test_data_of_other_classes_or_without_masks_is_told_in_one_line(task):
    with pytest.raises(lc.LoraCompError, match="objects of class 7, but the network squares has classes 0 to 1"):
        task.measure(square("a").image, square("a", labels=torch.tensor([7])))
    if task.name == "seg":
        for classes in ((), ["grey"]):
            boxes = square("a", masks=torch.zeros(0), classes=classes)
            with pytest.raises(lc.LoraCompError, match="a is annotated with boxes alone: use task=det"):
                task.measure(boxes.image, boxes)
        with pytest.raises(lc.LoraCompError, match="a is annotated with boxes alone"):
            task.notes("set", boxes)  # before anything is coded
        other = square("a", masks=torch.zeros(0), classes=["zebra"])
        assert task.measure(other.image, other)["agreement"] == ONE


def test_an_empty_image_is_rightly_seen_as_empty():
    found = objects(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0]), scores=torch.tensor([0.8]))
    assert average_precision([{"truth": [], "detections": []}])["mAP"] == 1
    assert average_precision([{"truth": [], "detections": found}])["mAP"] == 0


def test_a_run_pools_its_images_and_goes_on_where_it_was(task, codec, tmp_path):
    class Data(list):
        name = "squares"

    data = Data([square("a"), square("b", 24), square("c", red=True)])

    def start(images):
        with Progress(disable=True) as progress:
            return evaluate(Data(images), [Point(codec, [None])], task, FitSettings(0, 0.01), tmp_path, progress)

    start(data[:2])
    records = start(data)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert len(lines) == 3  # the first two were not coded again
    seen = [json.loads(line)["record"]["objects"] for line in lines]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == records.results()
    [row] = results["summary"]
    assert row["score"] == row["mAP"] == task.pool(seen)["mAP"] and row["count"] == 3
    assert all("objects" not in record and 0 <= record["score"] <= 1 for record in results["records"])
