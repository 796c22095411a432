"""DETR behind the contract, and as transformers answers by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from lora_comp.errors import LoraCompError
from lora_comp.networks import load_detector

transformers = pytest.importorskip("transformers")
NAMES = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # of COCO's 91 ids
NAME = "transformers/facebook/detr-resnet-50"


@pytest.fixture(scope="module")
def detector():
    """With random weights, at an eighth of its size."""
    detector = load_detector(NAME, None)
    detector.processor.size = {"shortest_edge": 96, "longest_edge": 160}
    with torch.no_grad():
        detector.model.class_labels_classifier.weight.mul_(20)
    return detector


def test_it_keeps_the_contract(detector, pair, check_contract):
    assert (detector.name, detector.has_masks, detector.published_scale) == (NAME, False, None)
    check_contract(detector, pair, stages=4)


def test_it_finds_what_transformers_finds_by_hand(detector, make_image):
    x = make_image(150, 200)
    pil = Image.fromarray((x.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    prepared = processor(images=pil, return_tensors="pt")
    with torch.no_grad():
        answer = detector.model(**prepared)
        maps = detector.model.model.backbone(**prepared)
    [by_hand] = processor.post_process_object_detection(answer, threshold=0.0, target_sizes=[(150, 200)])
    [found] = detector.detect(x[None])
    order = by_hand["scores"].argsort(descending=True, stable=True)
    order = [i for i in order if NAMES[by_hand["labels"][i]] != "N/A"]
    assert len(order) > 50
    assert [detector.classes[i] for i in found["labels"]] == [NAMES[i] for i in by_hand["labels"][order]]
    assert torch.allclose(found["boxes"], by_hand["boxes"][order], atol=1e-3)
    assert torch.allclose(found["scores"], by_hand["scores"][order], atol=1e-6)
    for stage, (same, _) in zip(detector.stages(x[None]), maps, strict=True):
        assert (stage - same).abs().max() < 0.02 * same.abs().max()  # of pixels resized as floats, and as bytes


def test_features_of_an_image_that_needs_no_resizing_are_the_librarys(detector, make_image):
    x = make_image(96, 128)
    prepared = detector.processor(images=[(x * 255).round().byte()], return_tensors="pt")
    maps = detector.model.model.backbone(**prepared)
    for stage, (same, _) in zip(detector.stages(x[None]), maps, strict=True):
        assert (stage - same).abs().max() < 1e-4 * same.abs().max()


def test_dilation_keeps_the_last_stage_at_a_stride_of_16(make_image):
    detector = load_detector(f"{NAME}-dc5", None)
    detector.processor.size = {"shortest_edge": 64, "longest_edge": 107}
    assert [tuple(stage.shape[1:]) for stage in detector.stages(make_image(64, 64)[None])] == [
        (256, 16, 16),
        (512, 8, 8),
        (1024, 4, 4),
        (2048, 4, 4),
    ]


def test_weights_load_from_a_file_as_the_library_saves_it(detector, pair, tmp_path):
    detector.model.save_pretrained(tmp_path)
    torch.save(detector.model.state_dict(), tmp_path / "model.pth")
    for file in ("model.safetensors", "model.pth"):
        loaded = load_detector(NAME, tmp_path / file)
        loaded.processor.size = detector.processor.size
        assert loaded.published_scale == 16
        assert torch.equal(loaded.detect(pair)[0]["scores"], detector.detect(pair)[0]["scores"])


def no_network(*_, **__):
    raise OSError("We couldn't connect,\ncheck your connection")


def test_a_wrong_request_is_told_in_one_line(monkeypatch, tmp_path, detector):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("text")
    for name, weights, message in [
        ("transformers/facebook/nowhere", None, "unknown DETR 'facebook/nowhere'; known are facebook/detr-resnet-50,"),
        (NAME, tmp_path / "other.pth", "do not fit DETR: 530 tensors are missing"),
        (NAME, tmp_path / "text.pth", "do not fit DETR"),
        (NAME, tmp_path / "missing.safetensors", "missing.safetensors do not exist"),
        (NAME, "default", r"cannot be loaded \(We couldn't connect, check"),
    ]:
        if weights == "default":
            monkeypatch.setattr(transformers.DetrForObjectDetection, "from_pretrained", no_network)
        with pytest.raises(LoraCompError, match=message) as error:
            load_detector(name, weights)
        assert "\n" not in str(error.value)
    with pytest.raises(LoraCompError, match="cannot take an image of 2000x1"):
        detector.detect(torch.rand(1, 3, 2000, 1))
