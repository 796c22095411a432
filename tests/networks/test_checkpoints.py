"""Checkpoint files as training code writes them: what wraps the weights, other numbers of classes, and what is said of
those that do not fit."""

import argparse
import pickle
import re
from collections import OrderedDict

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from lora_comp.errors import LoraCompError
from lora_comp.networks import load_detector, load_network
from lora_comp.networks.checkpoints import read_checkpoint

NAME = "test_resnet"  # timm's own small one


def trained(classes: int = 1000) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return timm.create_model(NAME, num_classes=classes).eval()


def prefixed(state: dict, prefix: str) -> dict:
    return OrderedDict((prefix + key, value) for key, value in state.items())


class Recorded:
    """An object of a class of the training code's own."""

    def __init__(self):
        self.history = [1.0, 2.0]


def is_run(marker):
    raise AssertionError("a pickle was run")


class Runs:
    def __reduce__(self):
        return is_run, ("marker",)


def ema(model: nn.Module) -> dict:
    return {"state_dict": {key: torch.zeros_like(v) for key, v in model.state_dict().items()}, "epoch": 3}


WRAPPED = {
    "plain": lambda m: m.state_dict(),
    "DataParallel": lambda m: nn.DataParallel(m).state_dict(),
    "compiled": lambda m: prefixed(m.state_dict(), "_orig_mod."),
    "compiled and parallel": lambda m: {"model": prefixed(m.state_dict(), "module._orig_mod.")},
    "Lightning": lambda m: {
        "state_dict": prefixed(m.state_dict(), "model.") | {"criterion.weight": torch.ones(1000)},
        "hyper_parameters": argparse.Namespace(lr=0.1),
        "epoch": 3,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    },
    "Lightning, net": lambda m: {
        "state_dict": prefixed(m.state_dict(), "net."),
        "callbacks": {"best": torch.tensor(1.0)},
    },
    "model": lambda m: {"model": m.state_dict(), "optimizer": {"state": {}}, "epoch": torch.tensor(3)},
    "model_state_dict": lambda m: {"model_state_dict": m.state_dict(), "optimizer_state_dict": {}},
    "timm's average": lambda m: ema(m) | {"state_dict_ema": m.state_dict(), "args": argparse.Namespace(lr=1)},
    "model_ema": lambda m: ema(m) | {"model_ema": m.state_dict()},
    "mmengine": lambda m: {
        "meta": {"epoch": 1},
        "state_dict": prefixed(m.state_dict(), "backbone."),
        "message_hub": Recorded(),
    },
    "a head elsewhere": lambda m: {
        "state_dict": {("head." if k.startswith("fc.") else "backbone.") + k: v for k, v in m.state_dict().items()}
    },
    "of SWA": lambda m: torch.optim.swa_utils.AveragedModel(m).state_dict(),
    "nested": lambda m: {"checkpoint": {"state_dict": m.state_dict()}},
    "counted": lambda m: m.state_dict() | {"conv1.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    "half": lambda m: {key: v.half() if v.is_floating_point() else v for key, v in m.state_dict().items()},
    "the module itself": lambda m: m,
    "the module itself, inside": lambda m: {"ema": None, "model": m, "train_args": argparse.Namespace()},
    "code": lambda m: {"model": m.state_dict(), "hook": Runs()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_in_what_training_code_wraps_around_them(kind, tmp_path, make_image):
    model, path, x = trained(), tmp_path / "last.pth.tar", make_image(64, 64)[None]
    torch.save(WRAPPED[kind](model), path)
    network = load_network(f"timm/{NAME}", path)
    same = {
        key: value.to(torch.float16 if kind == "half" else value.dtype) for key, value in model.state_dict().items()
    }
    assert all(torch.equal(value, same[key].to(value.dtype)) for key, value in network.model.state_dict().items())
    assert torch.isfinite(network(x)).all()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_a_safetensors_file_is_known_by_what_it_holds(suffix, tmp_path):
    model, path = trained(), tmp_path / f"model{suffix}"
    safetensors.torch.save_file(prefixed(model.state_dict(), "timm_model."), path)
    assert torch.equal(load_network(f"timm/{NAME}", path).model.conv1[0].weight, model.conv1[0].weight)


def test_a_file_of_torchs_old_format_is_read(tmp_path):
    model, path = trained(), tmp_path / "old.pt"
    torch.save({"model": model.state_dict(), "who": Recorded()}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(path)["fc.weight"], model.fc.weight)


@pytest.mark.parametrize("name", [NAME, "test_vit", "test_efficientnet", "test_convnext", "levit_128s"])
def test_the_number_of_classes_is_the_checkpoints(name, tmp_path, make_image):
    path = tmp_path / "fine.pth"
    torch.save({"state_dict": timm.create_model(name, num_classes=7).state_dict()}, path)
    assert load_network(f"timm/{name}", path)(make_image(64, 64)[None]).shape == (1, 7)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_so_it_is_for_torchvision(name, tmp_path, make_image):
    path = tmp_path / "fine.pth"
    torch.save(nn.DataParallel(torchvision.models.get_model(name, num_classes=7)).state_dict(), path)
    assert load_network(f"torchvision/{name}", path)(make_image(64, 64)[None]).shape == (1, 7)


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_so_it_is_for_torchvisions_detectors(name, tmp_path, make_image):
    path = tmp_path / "fine.pth"
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4)
    torch.save({"model": model.state_dict(), "args": argparse.Namespace()}, path)
    detector = load_detector(f"torchvision/{name}", path)
    assert detector.classes == ["class 1", "class 2", "class 3"]
    assert (detector.detect(make_image(64, 64)[None])[0]["labels"] < 3).all()


def test_the_names_of_published_densenets_are_known(tmp_path):
    path, model = tmp_path / "densenet121-a639ec97.pth", torchvision.models.densenet121()
    state = {re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", key): v for key, v in model.state_dict().items()}
    assert state.keys() != model.state_dict().keys()
    torch.save(state, path)
    found = load_network("torchvision/densenet121", path).model.features.denseblock1.denselayer2.conv1.weight
    assert torch.equal(found, model.features.denseblock1.denselayer2.conv1.weight)


def without(state: dict, *names: str) -> dict:
    return {key: value for key, value in state.items() if key not in names}


MISFITS = {
    "missing": (lambda s: without(s, "fc.weight", "conv1.0.weight"), r"2 missing \(conv1.0.weight, fc.weight\)"),
    "unexpected": (lambda s: s | {"layer9.weight": torch.ones(2)}, r"1 unexpected \(layer9.weight\)"),
    "shape": (
        lambda s: s | {"conv1.0.weight": torch.ones(4, 3, 5, 5)},
        r"1 of another shape \(conv1.0.weight \(4, 3, 5, 5\) instead of \(16, 3, 3, 3\)\)",
    ),
    "another network": (lambda s: timm.create_model("test_vit").state_dict(), r"\d+ missing \(.*, \.\.\.\)"),
    "nothing": (lambda s: {"epoch": 3}, "it holds no tensors by name"),
    "a number": (lambda s: 3, "it holds no tensors by name"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_told_in_one_line_with_the_first_names(kind, tmp_path):
    change, says = MISFITS[kind]
    path = tmp_path / "last.pth"
    torch.save(change(trained().state_dict()), path)
    with pytest.raises(LoraCompError, match=says) as error:
        load_network(f"timm/{NAME}", path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1, 2]), b"\x80", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint_is_told_in_one_line(content, tmp_path):
    path = tmp_path / "last.pth"
    path.write_bytes(content)
    with pytest.raises(LoraCompError, match="do not fit") as error:
        load_network(f"timm/{NAME}", path)
    assert "\n" not in str(error.value)
