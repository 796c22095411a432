"""The detectors that ship: they keep the protocol of detectors and find what is in scenes never seen."""

import pytest
import torch

from lora_comp.data import Scenes
from lora_comp.data.shapes import KINDS
from lora_comp.errors import LoraCompError
from lora_comp.networks import load_detector, load_network, save_network
from lora_comp.training.detector import scores

# Of 60 scenes of the split test, some way below what the cards tell of 300.
FLOORS = {False: {"mAP": 0.7}, True: {"mAP": 0.7, "mask mAP": 0.57}}


@pytest.fixture(scope="module", params=[False, True], ids=["boxes", "masks"])
def detector(request):
    return load_detector("scenes", None, masks=request.param)


def test_it_names_the_kinds_of_object(detector):
    assert detector.classes == list(KINDS)
    assert detector.published_scale is None


@pytest.mark.parametrize("height, width", [(256, 256), (64, 64), (161, 351), (32, 33)])
def test_images_of_any_size_are_taken_as_they_are(detector, height, width):
    x = torch.rand(2, 3, height, width)
    assert [tuple(s.shape) for s in detector.stages(x)] == [
        (2, 48, 32 // stride * -(-height // 32), 32 // stride * -(-width // 32)) for stride in (4, 8, 16, 32)
    ]
    found = detector.detect(x)
    assert len(found) == 2
    for one in found:
        count = len(one["boxes"])
        assert 0 < count <= 50
        assert (one["boxes"].shape, one["boxes"].dtype) == ((count, 4), torch.float32)
        assert (one["boxes"][:, 2:] > one["boxes"][:, :2]).all()
        assert one["boxes"].min() >= 0
        assert (one["boxes"][:, 2:] <= torch.tensor([width, height])).all()
        assert torch.equal(one["scores"], one["scores"].sort(descending=True).values)
        assert (one["labels"].shape, one["labels"].dtype) == ((count,), torch.int64)
        assert 0 <= one["labels"].min() <= one["labels"].max() < len(KINDS)
        assert ("masks" in one) == detector.has_masks
        if detector.has_masks:
            assert (one["masks"].shape, one["masks"].dtype) == ((count, height, width), torch.bool)


def test_an_image_alone_is_found_in_as_in_a_batch(detector):
    x = torch.rand(2, 3, 96, 128)
    both, alone = detector.detect(x), detector.detect(x[1:])
    for name, value in alone[0].items():
        assert torch.allclose(both[1][name].float(), value.float(), atol=1e-3)


def test_nothing_may_be_found(detector, monkeypatch):
    monkeypatch.setattr(detector.roi_heads, "score_thresh", 1.0)
    [found] = detector.detect(torch.zeros(1, 3, 64, 96))
    assert found["boxes"].shape == (0, 4)
    assert not detector.has_masks or found["masks"].shape == (0, 64, 96)


def test_gradients_reach_the_image_from_every_stage_and_no_weight(detector):
    x = torch.rand(1, 3, 64, 96, requires_grad=True)
    for stage in detector.stages(x):
        assert torch.autograd.grad(stage.square().sum(), x, retain_graph=True)[0].abs().max() > 0
    assert not any(p.requires_grad for p in detector.parameters())


def test_random_weights_come_from_the_seed():
    one, same, other = (load_detector("scenes", None, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_a_saved_detector_answers_the_same_from_its_path(detector, tmp_path):
    path = tmp_path / "own.safetensors"
    save_network(detector, path, trained_on="nothing")
    loaded = load_detector(path, masks=detector.has_masks)
    assert loaded.core() == detector.core()
    x = torch.rand(1, 3, 64, 64)
    for stage, same in zip(detector.stages(x), loaded.stages(x), strict=True):
        assert (stage - same).abs().max() < 0.01 * stage.abs().max()  # float16 on disk
    assert load_detector("scenes", path, detector.has_masks).core() == detector.core()


@pytest.mark.parametrize(
    "name, weights",
    [
        ("scene", "default"),
        ("scenes", "no/such/file"),
        ("scenes", "broken"),
        ("broken", "default"),
        ("classifier", "default"),
    ],
)
def test_what_is_no_detector_is_told_in_one_line(tmp_path, network, monkeypatch, name, weights):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").write_bytes(b"\0" * 100)
    with pytest.raises(LoraCompError) as raised:
        load_detector(network if name == "classifier" else name, weights)
    assert "\n" not in str(raised.value)


def test_a_detector_is_no_segmenter_and_no_classifier(tmp_path):
    path = tmp_path / "own.safetensors"
    save_network(load_detector("scenes", None), path)
    with pytest.raises(LoraCompError, match="has no masks"):
        load_detector(path, masks=True)
    with pytest.raises(LoraCompError, match="has no masks"):
        load_detector("scenes", path, masks=True)
    with pytest.raises(LoraCompError, match="not a network"):
        load_network(path)
    with pytest.raises(LoraCompError, match="known are flowers, scenes, timm"):
        load_network("scenes-det")


@pytest.mark.parametrize("masks", FLOORS)
def test_what_ships_finds_the_objects_of_scenes_it_never_saw(masks):
    shipped = load_detector("scenes", masks=masks)
    reached = scores(shipped, Scenes("test", 60, 256))
    for name, floor in FLOORS[masks].items():
        assert reached[name] > floor, reached
    assert len(shipped.stage_variance) == 4
