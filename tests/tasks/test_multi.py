"""Several tasks at once, tasks of one's own, and regions of interest."""

import pytest
import torch
from test_det import Squares, square

import lora_comp as lc
from lora_comp.commands.run import RunConfig
from lora_comp.config import compose
from lora_comp.roi import region, simplify_background, weighted_psnr
from lora_comp.tasks import det


@pytest.fixture
def both(network, monkeypatch):
    monkeypatch.setattr(det, "load_detector", lambda *arguments: Squares())

    def make(shares=None, **parts):
        return lc.load_task("both", parts=parts or {"cls": {"network": str(network)}, "det": {}}, shares=shares)

    return make


def test_the_objective_is_the_mean_of_the_parts_by_their_shares(both):
    together, x, y = both([3, 1]), torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    cls, det_ = together.parts.values()
    parts = [task.weight(2) * task.distortion(x, task.targets(y)) for task in (cls, det_)]
    got = together.weight(2) * together.distortion(x, together.targets(y))
    torch.testing.assert_close(got, 0.75 * parts[0] + 0.25 * parts[1])
    assert together.name == "0.75cls+0.25det" and both().name == "cls+det"


def test_a_part_without_a_share_is_measured_and_not_optimised_for(both, monkeypatch):
    together = both([1, 0])
    monkeypatch.setattr(Squares, "stages", lambda *_: pytest.fail("its network was asked"))
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    together.loss(x, torch.rand(1, 3, 64, 64)).backward()
    assert x.grad.abs().sum() > 0
    monkeypatch.undo()


def test_every_figure_of_every_part_is_told(both):
    sample = square("a")
    measured = both().measure(sample.image, sample)
    assert {"cls_agreement", "cls_feature_distance", "det_mAP", "det_feature_distance"} <= set(measured)
    assert measured["score"] == measured["cls_agreement"] == 1
    pooled = both().pool([measured["objects"], both().measure(torch.zeros(3, 64, 64), sample)["objects"]])
    assert "score" not in pooled and pooled["det_mAP"] == pytest.approx(0.5, abs=0.01)  # the score is cls's, a mean
    assert both(det={}, human={}).pool([both(det={}, human={}).measure(sample.image, sample)["objects"]])["score"] > 0.9


@pytest.mark.parametrize("shares", [[0, 0], [1], [1, -1], [1, 1, 1]])
def test_shares_that_do_not_fit_are_told(both, shares):
    with pytest.raises(lc.LoraCompError, match=r"task\.shares must be a number from 0 on for each of cls, det"):
        both(shares)


def test_several_tasks_are_words_like_one():
    words = ["task=[cls,human]", "task.cls.network=flowers", "task.shares=[3,1]"]
    config = compose(RunConfig, words, "run")
    assert lc.load_task(**config.task.given()).key == "cls-flowers+human"
    for wrong, message in (
        (["task=[cls,nowhere]"], "task must be cls, det, human, open, own or seg, not 'nowhere'"),
        (["task=[cls,human]", "task.det.network=a"], r"task=cls\+human has no setting 'task\.det\.network'"),
        (["task=own"], "MODULE:CLASS"),
    ):
        with pytest.raises(lc.LoraCompError, match=message):
            compose(RunConfig, wrong, "run")


def test_what_is_outside_the_region_costs_few_bits(human, make_image):
    codec, image, weights = lc.load_codec("tic-v", 2), make_image(128, 192), torch.zeros(128, 192)
    weights[32:96, 32:96] = 1
    whole, part = (lc.encode(image, codec, human, steps=3, roi=roi) for roi in (None, weights))
    assert len(part.data) < 0.6 * len(whole.data)
    seen = [weighted_psnr(lc.decode(coded.data, codec), image, weights) for coded in (whole, part)]
    assert seen[1] > seen[0] - 0.5


def test_outside_the_region_the_task_sees_no_error(codec, human, make_image):
    image = make_image(64, 64)
    nothing = lc.encode(image, codec, human, steps=0, roi=torch.zeros(64, 64))
    assert nothing.loss_before == pytest.approx(nothing.bpp, rel=0.5) and nothing.loss_after <= nothing.loss_before
    torch.testing.assert_close(simplify_background(image[None], torch.ones(1, 1, 64, 64)), image[None])


def test_the_detectors_own_boxes_are_a_region(both, human):
    sample = square("a")
    assert torch.equal(region("boxes", sample.image, both()), sample.masks[0].float())
    assert region("boxes", torch.zeros(3, 64, 64), both()).min() == 1  # nothing was found: all of it counts
    with pytest.raises(lc.LoraCompError, match=r"needs a task with a detector, as task=det, or det among several"):
        region("boxes", sample.image, human)


def test_a_region_that_does_not_fit_is_told(codec, human, make_image, tmp_path):
    for roi, message in (
        (torch.ones(8, 8), "is .H, W. like its image"),
        (torch.full((64, 64), 2.0), "must lie in .0, 1."),
    ):
        with pytest.raises(lc.LoraCompError, match=message):
            lc.encode(make_image(), codec, human, roi=roi)
    lc.data.write_image(tmp_path / "mask.png", torch.ones(3, 8, 8))
    with pytest.raises(lc.LoraCompError, match=r"mask\.png is 8x8, the image 64x64"):
        region(str(tmp_path / "mask.png"), make_image(), human)


@pytest.mark.parametrize(
    "name, message",
    [("nowhere:Task", "the task 'nowhere:Task' cannot be loaded: No module"), ("math:Task", "has no attribute 'Task'")],
)
def test_a_task_of_ones_own_that_is_not_there_is_told(name, message):
    with pytest.raises(lc.LoraCompError, match=message):
        lc.load_task(name)
