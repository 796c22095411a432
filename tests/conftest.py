import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import lora_comp as lc
from lora_comp.codecs import build
from lora_comp.data.folders import photograph
from lora_comp.networks import SmallResNet, save_network
from lora_comp.weights import write_weights

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real images and reference outputs for tests marked `data`."""
    folder = Path(os.environ.get("LORA_COMP_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set LORA_COMP_SHARED")
    return folder


@pytest.fixture(scope="session")
def golden(shared):
    """Of a published system: its state dict from `fill.py`, the input image, and the expected outputs."""
    folder = shared / "golden"
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)

    def of(system: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, np.ndarray]]:
        expected = dict(np.load(folder / f"{system}.npz"))
        keys = json.loads((folder / f"{system}.keys.json").read_text())
        values = {k: fill.value(k, tuple(shape), float(expected["gain"])) for k, shape in keys.items()}
        state = {k: torch.from_numpy(v) for k, v in values.items() if v is not None}
        return state, torch.from_numpy(fill.image(256, 256)), expected

    return of


def photograph_tensor() -> torch.Tensor:
    return torch.from_numpy(photograph("chelsea")).permute(2, 0, 1).float() / 255  # (3, 300, 451)


def write_untrained(name: str, folder: Path) -> Path:
    """A file of seeded random weights, adjusted to resemble trained ones: y spreads over several integers, the scales
    match it, images are grey instead of black, and a context has an effect."""
    codec = build(name, 2).eval()
    with torch.no_grad():
        codec.g_a[6].weight.mul_(4)
        codec.g_s[7].bias.add_(0.5)
        if hasattr(codec.prior, "fuse"):
            codec.prior.fuse[4].weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        out = codec(photograph_tensor()[None, :, :256, :448])
        spread = (out["y"] - out["means"]).square().mean((0, 2, 3)).sqrt()
        codec.h_s[3].bias[: codec.M] += spread - out["scales"].mean((0, 2, 3))
    write_weights(folder / f"{name}.safetensors", dict(codec.named_parameters()), {})
    return folder / f"{name}.safetensors"


def write_untrained_stf(folder: Path) -> Path:
    """As `write_untrained`, for stf-s: y and z spread over several integers, the Gaussians match y, and slices and
    residuals have an effect."""
    codec = build("stf-s", 2).eval()
    prior = codec.prior
    with torch.no_grad():
        codec.g_a[6].reduction.weight.mul_(10)
        codec.h_a[8].weight.mul_(30)
        codec.g_s[7][2].bias.add_(0.5)
        for net in prior.scales:
            net[-1].weight.mul_(4)
        out = codec(photograph_tensor()[None, :, :256, :448])
        spread = (out["y"] - out["means"]).square().mean((0, 2, 3)).sqrt() - out["scales"].mean((0, 2, 3))
        for net, of_slice in zip(prior.scales, spread.split(prior.size), strict=True):
            net[-1].bias.add_(of_slice)
    write_weights(folder / "stf-s.safetensors", dict(codec.named_parameters()), {})
    return folder / "stf-s.safetensors"


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    return write_untrained("tic-v", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def codec(weights):
    return lc.load_codec("tic-v", 2, weights)


@pytest.fixture(scope="session")
def fixed_rate_codec(tmp_path_factory):
    """Of one rate point, with a prior of one step."""
    return lc.load_codec("tic", 2, write_untrained("tic", tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="session")
def stf_weights(tmp_path_factory) -> Path:
    return write_untrained_stf(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def stf(stf_weights):
    return lc.load_codec("stf-s", 2, stf_weights)


@pytest.fixture(scope="session")
def trained_codec():
    return lc.load_codec("tic-v", 2)


@pytest.fixture(scope="session")
def human():
    return lc.load_task("human")


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """Weights file of a small classifier with seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = SmallResNet(["bird", "cup", "tree"])
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    save_network(small, path)
    return path


@pytest.fixture(scope="session")
def cls(network):
    return lc.load_task("cls", network=str(network))


@pytest.fixture(scope="session")
def make_image():
    """Returns a crop (3, H, W) of a photograph, up to 300x451."""
    whole = photograph_tensor()

    def part(height: int = 64, width: int = 64) -> torch.Tensor:
        return whole[:, -height:, :width].clone()

    return part


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
