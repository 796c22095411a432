"""detectron2's networks behind the contract, and beside detectron2's own predictor on the same image."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lora_comp.errors import LoraCompError
from lora_comp.networks import load_detector

pytest.importorskip("detectron2")
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

from lora_comp.networks.detectron2 import POINT_REND

MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"


def small(detector):
    """At an eighth of its size, with ten objects of whatever score."""
    detector.short, detector.longest = 96, 160
    if hasattr(detector.model, "roi_heads"):
        last = detector.model.roi_heads.box_predictor
        last.test_score_thresh, last.test_topk_per_image = 0.0, 10
        detector.model.proposal_generator.post_nms_topk[False] = 50
    return detector


@pytest.mark.parametrize(
    "name, stages, masks",
    [(MASK_RCNN, 5, True), ("COCO-Detection/retinanet_R_50_FPN_3x", 5, False), (POINT_REND, 5, True)],
)
def test_every_family_keeps_the_contract(name, stages, masks, pair, check_contract):
    if name == POINT_REND:
        pytest.importorskip("cv2")
    detector = small(load_detector(f"detectron2/{name}", None))
    assert (detector.name, detector.has_masks, len(detector.classes)) == (f"detectron2/{name}", masks, 80)
    assert detector.classes[0] == "person" and detector.classes[-1] == "toothbrush"
    assert detector.published_scale is None
    check_contract(detector, pair, stages)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Mask R-CNN R50-FPN of random weights here, and in detectron2's predictor, which reads them from a file."""
    path = tmp_path_factory.mktemp("detectron2") / "random.pth"
    first = load_detector(f"detectron2/{MASK_RCNN}", None)
    torch.save({"model": first.model.state_dict()}, path)
    config = get_cfg()
    config.merge_from_file(model_zoo.get_config_file(f"{MASK_RCNN}.yaml"))
    config.MODEL.WEIGHTS, config.MODEL.DEVICE = str(path), "cpu"
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST, config.TEST.DETECTIONS_PER_IMAGE = 0.0, 20
    detector = load_detector(f"detectron2/{MASK_RCNN}", path)
    last = detector.model.roi_heads.box_predictor
    last.test_score_thresh, last.test_topk_per_image = 0.0, 20
    assert detector.published_scale == 0.2
    return detector, DefaultPredictor(config)


def by_predictor(predictor, x):
    """Its instances for an image (3, H, W), and the features that its backbone made on the way."""
    seen = []
    hook = predictor.model.backbone.register_forward_hook(lambda *call: seen.extend(call[2].values()))
    bgr = np.ascontiguousarray((x * 255).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1])
    instances = predictor(bgr)["instances"]
    hook.remove()
    return instances, seen


@pytest.mark.parametrize("size, tolerance", [((800, 800), 1e-4), ((200, 150), 2e-2)])
def test_boxes_and_features_are_those_of_detectron2s_predictor(both, make_image, size, tolerance):
    """Boxes always; features to rounding where nothing is resized, else to what it does that bytes are resized."""
    detector, predictor = both
    x = F.interpolate(make_image(200, 150)[None], size, mode="bilinear").mul(255).round().div(255)
    instances, features = by_predictor(predictor, x[0])
    [found] = detector.detect(x)
    assert len(instances) >= 10
    assert (found["boxes"] - instances.pred_boxes.tensor).abs().max() < 1e-4
    assert (found["scores"] - instances.scores).abs().max() < 1e-4
    assert torch.equal(found["labels"], instances.pred_classes) and torch.equal(found["masks"], instances.pred_masks)
    with torch.no_grad():
        stages = detector.stages(x)
    assert [stage.shape for stage in stages] == [feature.shape for feature in features]
    for stage, feature in zip(stages, features, strict=True):
        assert (stage - feature).abs().max() < tolerance * feature.abs().max()


def test_a_file_as_the_model_zoo_offers_it_loads_and_nothing_but_arrays_is_unpickled(both, tmp_path):
    detector, _ = both
    arrays = {key: value.numpy() for key, value in detector.model.state_dict().items()}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    loaded = load_detector(f"detectron2/{MASK_RCNN}", tmp_path / "model.pkl")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, detector.model.state_dict()[name])
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": arrays, "hook": print}))
    with pytest.raises(LoraCompError, match=r"it holds \w+.print, not only arrays"):
        load_detector(f"detectron2/{MASK_RCNN}", tmp_path / "evil.pkl")


def no_network(*_, **__):
    raise OSError("Name or service\nnot known")


def test_a_wrong_request_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("lora_comp.networks.detectron2.PathManager.get_local_path", no_network)
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    for name, weights, message in [
        ("nowhere", None, "model zoo has no 'nowhere'"),
        ("COCO-Detection/rpn_R_50_FPN_1x", None, "does not find objects by itself"),
        (MASK_RCNN, "default", "cannot be loaded .Name or service not known.; give a file"),
        (MASK_RCNN, tmp_path / "missing.pkl", "missing.pkl do not exist"),
        (MASK_RCNN, tmp_path / "other.pth", "do not fit GeneralizedRCNN: .* tensors are missing"),
        (MASK_RCNN, __file__, "do not fit GeneralizedRCNN"),
    ]:
        with pytest.raises(LoraCompError, match=message) as error:
            load_detector(f"detectron2/{name}", weights)
        assert "\n" not in str(error.value)
