"""The registries of networks: every family has its module, and what is not known is answered with what is."""

import importlib

import pytest
import torch
from torch import nn

from lora_comp.errors import LoraCompError
from lora_comp.networks import DETECTORS, NETWORKS, load_detector, load_external, load_network
from lora_comp.networks.resnet import SmallResNet

OPTIONAL = ("detectron2", "detr")


def test_every_family_has_its_module():
    for families, function in ((NETWORKS, "read"), (DETECTORS, "load")):
        for family in families:
            if family.module not in OPTIONAL:
                assert callable(getattr(importlib.import_module(f"lora_comp.networks.{family.module}"), function))


def test_what_ships_is_known_to_both():
    assert isinstance(load_network("scenes"), SmallResNet)
    assert load_external("scenes").model.name == load_detector("scenes").name == "scenes"


@pytest.mark.parametrize("load, form", [(load_network, "FILE.onnx"), (load_external, "timm/NAME")])
def test_an_unknown_name_is_answered_with_the_forms_that_there_are(load, form):
    with pytest.raises(LoraCompError, match=f"unknown network 'nowhere'; known are flowers, scenes, .*{form}"):
        load("nowhere")
    with pytest.raises(LoraCompError, match="unknown detector 'nowhere'; known are scenes, torchvision/NAME"):
        load_detector("nowhere")


def test_a_file_is_not_known_to_be_a_classifier(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 2, 1), torch.rand(1, 3, 8, 8)), tmp_path / "net.pt")
    for name in (tmp_path / "net.pt", "torchvision/lraspp_mobilenet_v3_large"):
        with pytest.raises(LoraCompError, match="is not known to be a classifier; task=open takes any network"):
            load_network(name, "default" if name == tmp_path / "net.pt" else None)


@pytest.mark.parametrize("name", ["net.onnx", "yolov8n.pt", "net.pt2", "timm/resnet50", "flowers", "net:make"])
@pytest.mark.parametrize("masks", [False, True])
def test_a_network_of_another_kind_is_not_known_to_be_a_detector(tmp_path, monkeypatch, name, masks):
    monkeypatch.chdir(tmp_path)
    for there in (False, "." in name):
        if there:
            (tmp_path / name).write_bytes(b"a network")
        with pytest.raises(LoraCompError, match=f"'{name}' is not known to be a detector; task=open takes any network"):
            load_detector(name, masks=masks)


def test_a_backbone_without_a_classifier_is_none():
    with pytest.raises(LoraCompError, match="is not known to be a classifier; task=open takes any network"):
        load_network("timm/vit_tiny_patch16_dinov3_qkvb", None)


def test_a_name_without_its_library_is_answered_with_it():
    with pytest.raises(LoraCompError, match=r"'resnet50'; did you mean torchvision/resnet50 or timm/resnet50\?"):
        load_network("resnet50")
    with pytest.raises(LoraCompError, match=r"did you mean timm/vit_tiny_patch16_224\?"):
        load_external("vit_tiny_patch16_224")
    with pytest.raises(LoraCompError, match=r"did you mean torchvision/fasterrcnn_resnet50_fpn\?"):
        load_detector("fasterrcnn_resnet50_fpn")


def test_networks_arrive_frozen_and_overwrite_nothing():
    for network in (
        load_network("torchvision/resnet18", None),
        load_detector("torchvision/ssdlite320_mobilenet_v3_large", None),
    ):
        assert not any(getattr(part, "inplace", False) or part.training for part in network.model.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
