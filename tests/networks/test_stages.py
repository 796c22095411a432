"""The finder of stages: one for all tasks, and what it finds sees all of the network."""

import pytest
import torch
from torch import nn

from lora_comp.networks import SmallResNet, load_external, load_network
from lora_comp.tasks import load_task

LAYERS = {
    "torchvision/resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "torchvision/mobilenet_v2": ["features.3", "features.6", "features.13", "features"],
    "timm/resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "timm/mobilenetv3_small_050": ["blocks.0", "blocks.1", "blocks.3", "blocks.5"],
    "timm/efficientnet_lite0": ["blocks.1", "blocks.2", "blocks.4", "bn2"],  # its last convolution follows the blocks
    "timm/vit_tiny_patch16_224": ["blocks.2", "blocks.5", "blocks.8", "blocks.11"],
    "timm/swin_tiny_patch4_window7_224": ["layers.0", "layers.1", "layers.2", "layers.3"],
    "scenes": ["layers.0", "layers.1", "layers.2", "layers.3"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_classifier_has_the_same_stages_under_cls_and_open(name, make_image):
    weights = "default" if name == "scenes" else None
    cls, opened = load_task("cls", network=name, weights=weights), load_task("open", network=name, weights=weights)
    assert opened.network.layers == LAYERS[name]
    assert isinstance(cls.network, SmallResNet) or cls.network.layers == LAYERS[name]
    x = make_image(96, 128)[None]
    with torch.no_grad():
        for stage, same in zip(cls.network.stages(x), opened.network.stages(x), strict=True):
            assert torch.equal(stage, same)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/mobilenet_v2",
        "torchvision/squeezenet1_1",
        "timm/test_efficientnet",
        "timm/test_vit",
        "timm/ghostnet_050",
        "timm/levit_128s",
        "timm/vit_tiny_r_s16_p8_224",
        "timm/efficientformer_l1",
        "timm/pit_ti_224",
        "timm/crossvit_tiny_240",
        "timm/twins_svt_small",
        "timm/coat_lite_tiny",
        "timm/cait_xxs24_224",
        "timm/mixer_s32_224",
        "timm/mvitv2_tiny",
        "timm/hrnet_w18_small",
    ],
)
def test_whatever_changes_the_features_that_a_classifier_reads_changes_what_is_compared(name, make_image):
    """Each weight that the logits depend on has a gradient from the stages; those of the head, and of norms and
    pooling before it, need not."""
    network = load_network(name, None)
    model, x = network.model.requires_grad_(True), make_image(224, 224)[None]
    with torch.no_grad():
        for parameter in model.parameters():  # scales and embeddings that start at 0 would hide what is behind them
            if not parameter.any():
                nn.init.normal_(parameter, 0, 0.1)
    weights = {key: weight for key, weight in model.named_parameters() if weight.ndim > 1}
    stages, logits = network.stages(x), network(x)
    from_stages, from_logits = (
        torch.autograd.grad(
            sum((y * torch.rand_like(y)).sum() for y in outputs), [*weights.values()], allow_unused=True
        )
        for outputs in (stages, [logits])
    )
    unseen = {
        key
        for key, mine, theirs in zip(weights, from_stages, from_logits, strict=True)
        if theirs is not None and theirs.any() and (mine is None or not mine.any())
    }
    assert all("head" in key or "classifier" in key or key.startswith(("fc.", "aggregate.")) for key in unseen), unseen


def test_disturbing_the_last_stage_shows_in_what_is_compared(make_image):
    for name, last in (("timm/levit_128s", "stages.2"), ("timm/efficientformer_l1", "stages.3")):
        network, x = load_external(name, None), make_image(224, 224)[None]
        with torch.no_grad():
            before = network.stages(x)
            for parameter in network.model.get_submodule(last).parameters():
                parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0)
            after = network.stages(x)
        assert (after[-1] - before[-1]).norm() > 0.1 * before[-1].norm(), name


def test_what_blocks_return_comes_before_what_is_inside_of_them():
    assert load_external("torchvision/regnet_x_400mf", None).layers == [
        "trunk_output.block1",
        "trunk_output.block2",
        "trunk_output.block3",
        "trunk_output",
    ]


def test_a_layer_goes_by_each_of_its_names():
    network = load_external("timm/vit_tiny_patch16_224", None, layers=["blocks", "blocks.0"])
    assert network.layers == ["blocks.0", "blocks"]
    assert load_external("timm/vit_tiny_patch16_224", None, layers=["blocks.11"]).layers == ["blocks.11"]
