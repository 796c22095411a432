"""torchvision's detectors: the contract, and the library's own answers."""

import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from lora_comp.errors import LoraCompError
from lora_comp.networks import load_detector
from lora_comp.tasks.features import FeatureDistance

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def made(kind, x, lively):
    """With random weights that find something, and ResNets at a tenth of their size."""
    detector = load_detector(f"torchvision/{kind}", None)
    model = detector.model
    if "resnet" in kind:
        model.transform.min_size, model.transform.max_size = (96,), 160
    if "rcnn" in kind:
        model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.0, 10
        model.rpn._post_nms_top_n["testing"] = 50
    else:
        model.score_thresh = 0.0
    return lively(detector, x)


@pytest.mark.parametrize(
    "kind, stages, masks",
    [
        (SMALL, 3, False),
        ("maskrcnn_resnet50_fpn", 5, True),
        ("retinanet_resnet50_fpn", 5, False),
        ("fcos_resnet50_fpn", 5, False),
        ("ssdlite320_mobilenet_v3_large", 6, False),
    ],
)
def test_every_family_keeps_the_contract_and_answers_as_the_library_does(
    kind, stages, masks, pair, lively, check_contract
):
    detector = made(kind, pair, lively)
    assert (detector.name, detector.has_masks, len(detector.classes)) == (f"torchvision/{kind}", masks, 80)
    assert detector.published_scale is None
    check_contract(detector, pair, stages)
    categories = get_model_weights(kind).DEFAULT.meta["categories"]
    with torch.no_grad():
        answers = detector.model(list(pair))
    for one, answer in zip(detector.detect(pair), answers, strict=True):
        known = [i for i, label in enumerate(answer["labels"]) if categories[label] not in ("N/A", "__background__")]
        assert [detector.classes[i] for i in one["labels"]] == [categories[i] for i in answer["labels"][known]]
        assert torch.equal(one["boxes"], answer["boxes"][known]) and torch.equal(one["scores"], answer["scores"][known])
        if masks:
            assert torch.equal(one["masks"], answer["masks"][known, 0] > 0.5)


def test_the_stages_of_an_rcnn_are_p2_to_p6_of_the_resized_and_padded_image():
    detector = load_detector("torchvision/fasterrcnn_resnet50_fpn", None)
    with torch.no_grad():
        stages = detector.stages(torch.rand(1, 3, 64, 400))  # to 213x1333, then to 224x1344
    assert [tuple(s.shape[1:]) for s in stages] == [
        (256, 56, 336),
        (256, 28, 168),
        (256, 14, 84),
        (256, 7, 42),
        (256, 4, 21),
    ]


def test_features_in_half_precision_are_near_and_have_a_gradient(pair, lively):
    features = FeatureDistance(made(SMALL, pair, lively))
    noisy, targets = (0.8 * pair).requires_grad_(), features.targets(pair)
    exact = features.distortion(noisy, targets)
    with torch.autocast("cpu", torch.bfloat16):
        half = features.distortion(noisy, targets)
    assert torch.allclose(half, exact, rtol=0.1)
    assert torch.autograd.grad(half.sum(), noisy)[0].abs().sum() > 0


def test_a_person_detector_knows_persons(pair, lively):
    detector = made("keypointrcnn_resnet50_fpn", pair, lively)
    assert detector.classes == ["person"]
    assert all((one["labels"] == 0).all() and len(one["labels"]) for one in detector.detect(pair))


@pytest.mark.data
def test_classes_are_those_of_cocos_annotations(shared):
    categories = json.loads((shared / "data/coco96/instances.json").read_text())["categories"]
    names = [one["name"] for one in sorted(categories, key=lambda one: one["id"])]
    assert load_detector(f"torchvision/{SMALL}", None).classes == names


@pytest.mark.parametrize("kind", [SMALL, "fasterrcnn_resnet50_fpn"])
def test_a_published_file_answers_alike_as_default_and_by_its_path(kind, pair, lively, tmp_path, monkeypatch):
    """Those of the first ResNets were trained with batch norms without an epsilon."""
    torch.manual_seed(0)
    model = get_model(kind, weights=None, weights_backbone=None)
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    next(value for key, value in state.items() if key.endswith("running_var")).fill_(1e-5)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(state))
    path = tmp_path / Path(get_model_weights(kind).COCO_V1.url).name
    torch.save(state, path)
    published, by_path = (load_detector(f"torchvision/{kind}", weights) for weights in ("default", path))
    for detector in (published, by_path):
        assert detector.published_scale == 0.2
        detector.model.transform.min_size = (64,)
    for stage, same in zip(published.stages(pair), by_path.stages(pair), strict=True):
        assert (stage - same).abs().max() < 1e-4 * stage.abs().max()


def no_network(*_, **__):
    raise URLError("Name or service\nnot known")


@pytest.mark.parametrize(
    "name, weights, message",
    [
        ("torchvision/nowhere", None, "torchvision has no detector 'nowhere'; it has fasterrcnn"),
        ("torchvision/resnet18", None, "torchvision has no detector 'resnet18'"),
        (f"torchvision/{SMALL}", "default", "weights of torchvision/.* cannot be loaded .*not known.*give a file"),
        (f"torchvision/{SMALL}", "missing.pth", "missing.pth do not exist"),
        (f"torchvision/{SMALL}", __file__, "do not fit FasterRCNN"),
    ],
)
def test_a_wrong_request_is_told_in_one_line(name, weights, message, monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(LoraCompError, match=message) as error:
        load_detector(name, weights)
    assert "\n" not in str(error.value)


def test_segmentation_needs_a_network_with_masks():
    with pytest.raises(LoraCompError, match="has no masks; task=seg needs one that segments"):
        load_detector(f"torchvision/{SMALL}", None, masks=True)


def test_an_image_too_narrow_to_resize_is_told_in_one_line():
    detector = load_detector(f"torchvision/{SMALL}", None)
    for call in (detector.stages, detector.detect):
        with pytest.raises(LoraCompError, match=r"cannot take an image of 1x2000: .* nothing is left"):
            call(torch.rand(1, 3, 1, 2000))
    assert len(detector.stages(torch.rand(1, 3, 1, 1))) == 3
