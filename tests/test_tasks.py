"""Tasks: distortions, weights, scores and networks."""

import math

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_msssim import ms_ssim
from torch import nn

from lora_comp.data import Sample, load_data
from lora_comp.errors import LoraCompError
from lora_comp.networks import SmallResNet, load_network, save_network
from lora_comp.networks.fold import fold_batch_norms
from lora_comp.tasks import load_task

KINDS = [
    ("human", {}),
    ("human", {"metric": "ms-ssim"}),
    ("cls", {}),
    ("cls", {"network": "flowers"}),
    ("cls", {"network": "timm/resnet18", "weights": None}),
]


@pytest.mark.parametrize("name, options", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (7, 130), (64, 48)])
def test_tasks_accept_images_of_any_size(name, options, size):
    """Distortion is per image, zero only for the original, and differentiable; `measure` includes the score."""
    task = load_task(name, **options)
    original = torch.rand(2, 3, *size)
    targets = task.targets(original)
    noisy = (0.8 * original + 0.1).requires_grad_()
    distortion = task.distortion(noisy, targets)
    assert distortion.shape == (2,)
    assert (distortion > 0).all()
    assert task.distortion(original, targets).abs().max() < 1e-4 * distortion.max()
    assert torch.allclose(task.loss(noisy, original), distortion.mean())
    assert torch.autograd.grad(distortion.sum(), noisy)[0].abs().sum() > 0
    measured = task.measure(noisy[0], Sample("a", original[0], label=0))
    assert {"score", *task.metrics} <= set(measured)
    assert all(math.isfinite(value) for value in measured.values())


@pytest.mark.parametrize(
    "name, base, lambdas",
    [
        ({"name": "human"}, 255**2, (0.0018, 0.0035, 0.0067, 0.013)),
        ({"name": "human", "metric": "ms-ssim"}, 1, (2.4, 4.58, 8.73, 16.64)),
        ({"name": "cls"}, 1000, (0.0009, 0.0017, 0.0033, 0.006)),
    ],
)
def test_weights_match_the_published_ones(name, base, lambdas):
    task = load_task(**name)
    assert [task.weight(quality) for quality in (1, 2, 3, 4)] == [pytest.approx(base * x) for x in lambdas]
    assert task.weight(2.5) == pytest.approx(base * (lambdas[1] * lambdas[2]) ** 0.5)
    for quality in (0, 6.5, 9):
        with pytest.raises(LoraCompError, match=f"quality must be 1 to 6, not {quality}"):
            task.weight(quality)


def test_human_measures_mse_and_psnr():
    task, sample = load_task("human"), Sample("a", torch.full((3, 200, 200), 0.5))
    assert float(task.loss(sample.image[None] + 0.1, sample.image[None])) == pytest.approx(0.01)
    assert task.measure(sample.image + 0.1, sample)["score"] == pytest.approx(20, abs=1e-3)
    same = task.measure(sample.image, sample)
    assert same == {"score": pytest.approx(100), "psnr": pytest.approx(100), "ms_ssim": pytest.approx(1)}


def test_human_may_measure_ms_ssim():
    """One minus that of each image, whose differences of squares are never of bfloat16."""
    task, original = load_task("human", metric="ms-ssim"), torch.rand(2, 3, 192, 192)
    noisy = (0.9 * original + 0.1 * torch.rand_like(original)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        distortion = task.distortion(noisy, original)
    expected = ms_ssim(noisy.detach(), original, data_range=1.0, size_average=False)
    assert torch.equal(1 - distortion.detach(), expected)
    assert torch.autograd.grad(distortion.sum(), noisy)[0].isfinite().all()
    measured = task.measure(noisy[0], Sample("a", original[0]))
    assert measured["score"] == measured["ms_ssim"] == pytest.approx(float(expected[0]))
    assert measured["psnr"] == pytest.approx(load_task("human").measure(noisy[0], Sample("a", original[0]))["score"])
    assert (task.name, task.key) == ("human-ms-ssim", "human-ms-ssim")
    with pytest.raises(LoraCompError, match="the metric of human must be mse or ms-ssim, not lpips"):
        load_task("human", metric="lpips")


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 200), width=st.integers(1, 200))
def test_ms_ssim_is_finite_at_any_size_and_one_for_equal_images(height, width):
    image = torch.rand(3, height, width)
    assert load_task("human").measure(image, Sample("a", image))["ms_ssim"] == pytest.approx(1, abs=1e-4)
    assert 0 <= load_task("human").measure(1 - image, Sample("a", image))["ms_ssim"] <= 1.0001


def test_cls_scores_top1_with_a_label_and_agreement_without():
    task, scene = load_task("cls"), load_data("scenes", limit=1)[0]
    answer = task.network.classes.index(task.answer(scene.image))
    right = task.measure(scene.image, Sample("a", scene.image, label=answer))
    wrong = task.measure(scene.image, Sample("a", scene.image, label=(answer + 1) % 12))
    unlabelled = task.measure(scene.image, Sample("a", scene.image))
    assert (right["score"], right["top1"], right["agreement"]) == (1, 1, 1)
    assert (wrong["score"], wrong["agreement"]) == (0, 1)
    assert unlabelled["score"] == 1
    assert "top1" not in unlabelled
    assert right["feature_distance"] == pytest.approx(0, abs=1e-5)


def test_cls_distance_grows_with_distortion_and_is_of_order_one():
    """The weights, 0.9 to 6, assume this order of magnitude."""
    task, scene = load_task("cls"), load_data("scenes", limit=1)[0]
    noise = torch.randn_like(scene.image)
    images = [scene.image[None] + strength * noise for strength in (0.02, 0.1, 0.5)]
    distances = [float(task.loss(image, scene.image[None])) for image in images]
    assert distances == sorted(distances)
    assert 0.01 < distances[1] < 10


def test_cls_clamps_images():
    task, white = load_task("cls"), torch.ones(1, 3, 64, 64)
    assert float(task.loss(white + 0.5, white)) == 0


def test_feature_distance_is_normalised_by_the_networks_features():
    """Scaling the weights by ten scales the features but not the distance."""
    small, large = (load_task("cls", network="timm/resnet18", weights=None) for _ in range(2))
    with torch.no_grad():
        large.network.model.conv1.weight *= 10
    large.network.model.bn1.eps *= 100
    image, noisy = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    assert float(large.loss(noisy, image)) == pytest.approx(float(small.loss(noisy, image)), rel=0.01)


@pytest.mark.parametrize(
    "name, count",
    [
        ("torchvision/resnet18", 4),
        ("torchvision/vgg11", 4),
        ("torchvision/mobilenet_v3_small", 4),
        ("torchvision/vit_b_32", 4),
        ("timm/convnext_atto", 4),
        ("timm/mobilenetv3_small_050", 4),
        ("timm/vit_tiny_patch16_224", 4),
        ("timm/swin_tiny_patch4_window7_224", 4),
    ],
)
def test_library_networks_have_stages(name, count):
    network = load_network(name, weights=None)
    x = torch.rand(1, 3, 96, 64)
    stages, logits = network.stages(x), network(x)
    assert len(stages) == count
    assert logits.shape == (1, 1000)
    assert not any(p.requires_grad for p in network.parameters())


def test_stages_of_a_resnet_are_its_four_layers():
    stages = load_network("torchvision/resnet18", weights=None).stages(torch.rand(1, 3, 128, 96))
    assert [tuple(s.shape[1:]) for s in stages] == [(64, 32, 24), (128, 16, 12), (256, 8, 6), (512, 4, 3)]


@pytest.mark.parametrize("name, left", [("scenes", 0), ("torchvision/resnet18", 0), ("torchvision/densenet121", 62)])
def test_folding_batch_norms_keeps_the_features(name, left):
    network = load_network(name, None)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    x = torch.rand(1, 3, 96, 96)
    before = network.stages(x)
    if name == "scenes":
        fold_batch_norms(network)
    else:
        fold_batch_norms(network.model, network.stage_modules)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == left
    for stage, same in zip(network.stages(x), before, strict=True):
        assert (stage - same).abs().max() < 1e-4 * same.abs().max()


def test_networks_that_cannot_be_traced_keep_their_batch_norms():
    class Choosing(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    model = Choosing(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    fold_batch_norms(model)
    assert isinstance(model[1], nn.BatchNorm2d)


def test_random_weights_are_seeded_and_keep_the_callers_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (load_network("timm/resnet18", None, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(one(image), same(image))
    assert not torch.equal(one(image), other(image))


def test_a_saved_network_gives_the_same_output(tmp_path):
    torch.manual_seed(0)
    network = SmallResNet(["cat", "dog"], "pets").eval()
    network.stage_variance = [1.0, 2.0, 3.0, 4.0]
    save_network(network, tmp_path / "pets.safetensors", trained_on="nothing")
    loaded = load_network(tmp_path / "pets.safetensors")
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(loaded(image), network(image), atol=1e-2)
    assert (loaded.name, loaded.classes, loaded.stage_variance) == ("pets", ["cat", "dog"], [1, 2, 3, 4])


def test_weights_of_library_networks_load_from_a_file(tmp_path):
    network = load_network("timm/resnet18", None, seed=3)
    safetensors.torch.save_file(network.model.state_dict(), tmp_path / "a.safetensors")
    torch.save({"state_dict": network.model.state_dict()}, tmp_path / "a.pth")
    image = torch.rand(1, 3, 64, 64)
    for name in ("a.safetensors", "a.pth"):
        assert torch.equal(load_network("timm/resnet18", tmp_path / name)(image), network(image))


@pytest.mark.parametrize(
    "call, message",
    [
        (dict(name="sing"), "unknown task 'sing'; known are human, cls, det, seg"),
        (dict(name="human", network="scenes"), "takes metric, not network"),
        (dict(name="cls", net="scenes"), "takes network and weights and classes, not net"),
        (dict(name="cls", network="nowhere"), "unknown network 'nowhere'; known are flowers, scenes, timm"),
        (dict(name="cls", network="timm/nowhere", weights=None), "timm has no model 'nowhere'"),
        (dict(name="cls", network="torchvision/nowhere", weights=None), "torchvision has no model 'nowhere'"),
        (dict(name="cls", network="timm/resnet18", weights="missing.pth"), "missing.pth do not exist"),
        (dict(name="cls", network=__file__), "is not a network saved by lora_comp"),
        (dict(name="cls", network="timm/resnet18", weights=__file__), "do not fit ResNet"),
    ],
)
def test_wrong_arguments_raise_a_one_line_error(call, message):
    with pytest.raises(LoraCompError, match=message) as error:
        load_task(**call)
    assert "\n" not in str(error.value)


def test_the_shipped_network_classifies_unseen_scenes():
    network = load_network("scenes")
    for size, least in ((256, 0.9), ("odd", 0.85)):
        data = load_data("scenes", split="test", limit=300, size=size)
        with torch.no_grad():
            right = sum(int(network(s.image[None]).argmax()) == s.label for s in (data[i] for i in range(300)))
        assert right / 300 > least


@pytest.mark.data
def test_the_shipped_network_classifies_unseen_flowers(shared):
    network, data = load_network("flowers"), load_data("folder", shared / "data" / "flowers", "val")
    assert data.classes == network.classes
    with torch.no_grad():
        right = sum(int(network(s.image[None]).argmax()) == s.label for s in (data[i] for i in range(len(data))))
    assert right / len(data) > 0.86
