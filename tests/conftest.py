import os
from pathlib import Path

import pytest
import torch

import lora_comp as lc
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


def photograph_tensor() -> torch.Tensor:
    return torch.from_numpy(photograph("chelsea")).permute(2, 0, 1).float() / 255  # (3, 300, 451)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A file of seeded random weights for tic-s, adjusted to resemble trained ones: y spreads over several integers,
    the scales match it, and images are grey instead of black."""
    codec = lc.load_codec("tic-s", 2, weights=None)
    with torch.no_grad():
        codec.g_a[6].weight.mul_(4)
        codec.g_s[7].bias.add_(0.5)
        out = codec(photograph_tensor()[None, :, :256, :448])
        spread = (out["y"] - out["means"]).square().mean((0, 2, 3)).sqrt()
        codec.h_s[3].bias[: codec.M] += spread - out["scales"].mean((0, 2, 3))
    path = tmp_path_factory.mktemp("weights") / "tic-s.safetensors"
    write_weights(path, dict(codec.named_parameters()), {})
    return path


@pytest.fixture(scope="session")
def codec(weights):
    return lc.load_codec("tic-s", 2, weights)


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
