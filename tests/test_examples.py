"""The scripts in examples/ run."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from lora_comp import run
from lora_comp.data import read_image, write_image

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def fastestdet():
    pytest.importorskip("onnx2torch")
    spec = importlib.util.spec_from_file_location("fastestdet", EXAMPLES / "fastestdet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_detections_decode_boxes_and_suppress_overlaps(fastestdet):
    out = torch.zeros(85, 22, 22)
    for row, score in ((11, 1.0), (12, 0.9)):
        out[0, row, 5] = out[5 + 7, row, 5] = score
    boxes, scores, labels = fastestdet.detections(out, 220, 440)
    assert boxes.tolist() == [
        pytest.approx([100 - 110, 110 - 55, 220, 110])
    ]  # half of the image, centred at cell (5, 11) of 22
    assert (scores.tolist(), labels.tolist()) == ([1.0], [7])


def test_lead_is_computed_at_equal_bpp_in_every_bootstrap_sample(fastestdet):
    plain = [{"bpp": 0.2, "mAP": 0.1, "draws": [0.1, 0.2]}, {"bpp": 0.4, "mAP": 0.2, "draws": [0.2, 0.2]}]
    above, low, high = fastestdet.lead(plain, {"bpp": 0.3, "mAP": 0.18, "draws": [0.19, 0.2]})
    assert above == pytest.approx(0.03)
    assert (low, high) == (pytest.approx(0.002), pytest.approx(0.038))  # percentiles of 0 and 0.04


def test_mirror_mirrors_images_and_boxes(tmp_path):
    spec = importlib.util.spec_from_file_location("mirror", EXAMPLES / "mirror.py")
    mirror = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mirror)
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "a.png", torch.linspace(0, 1, 10).expand(3, 6, 10))
    (tmp_path / "instances.json").write_text(
        json.dumps(
            {"images": [{"id": 7, "file_name": "a.png"}], "annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4]}]}
        )
    )
    mirror.mirror(tmp_path, tmp_path / "mirrored")
    truth = json.loads((tmp_path / "mirrored" / "instances.json").read_text())
    assert truth["annotations"][0]["bbox"] == [6, 2, 3, 4]
    image = read_image(tmp_path / "mirrored" / "images" / "a.png")
    torch.testing.assert_close(image, torch.linspace(1, 0, 10).expand(3, 6, 10), rtol=0, atol=0.003)


@pytest.mark.data
def test_fastestdet_scores_a_run_and_conventional_codecs(fastestdet, shared, tmp_path, monkeypatch):
    coco, network = shared / "data" / "coco96", shared / "nets" / "fastestdet-coco.onnx"
    words = [
        "task=open",
        f"task.network={network}",
        f"task.input={EXAMPLES / 'fastestdet.yaml'}",
        "method=none",
        "data=folder",
        f"data.path={coco / 'images'}",
        "data.limit=2",
        "quality=[1,4]",
        f"out={tmp_path}",
    ]
    assert run.main(words) == 0
    monkeypatch.setattr(fastestdet, "CLASSIC", {"jpeg": (10, 50)})
    monkeypatch.setattr(sys, "argv", ["fastestdet.py", str(network), str(coco), str(tmp_path)])
    fastestdet.main()
    points = json.loads((tmp_path / "detections.json").read_text())["points"]
    assert {name: len(curve) for name, curve in points.items()} == {"uncompressed": 1, "plain": 2, "jpeg": 2}
    assert all(len(point["draws"]) == fastestdet.DRAWS for point in points["plain"])
    assert all(0 < point["mAP"] <= point["AP50"] < 1 for curve in points.values() for point in curve)
    assert (tmp_path / "detections.png").exists()


@pytest.mark.data
@pytest.mark.slow
def test_fastestdet_reaches_its_reference_score(fastestdet, shared):
    coco = shared / "data" / "coco96"
    scorer = fastestdet.Scorer(
        str(shared / "nets" / "fastestdet-coco.onnx"), coco / "instances.json", EXAMPLES / "fastestdet.yaml"
    )
    scores = scorer.score((path.name, fastestdet.read_image(path)) for path in sorted((coco / "images").iterdir()))
    assert scores["mAP"] == pytest.approx(0.190, abs=0.002)  # its predictions scored by pycocotools directly
