import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def pair(make_image) -> Tensor:
    """Two small images: float32 (2, 3, 96, 128)."""
    return torch.stack([make_image(96, 128), make_image(96, 128).flip(1)])


@pytest.fixture
def lively():
    """Gives batch norms the statistics of images, so that random weights tell one from another."""

    def give(detector: nn.Module, x: Tensor) -> nn.Module:
        norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.train().momentum = 1.0
        with torch.no_grad():
            detector.stages(x)
        return detector.eval()

    return give


@pytest.fixture
def check_contract():
    def check(detector: nn.Module, x: Tensor, stages: int) -> None:
        """What `networks.protocol.Detector` says."""
        x = x.clone().requires_grad_()
        features = detector.stages(x)
        sizes = [feature.shape[2] * feature.shape[3] for feature in features]
        assert len(features) == stages and sizes == sorted(sizes, reverse=True)
        assert all(len(feature) == len(x) for feature in features)
        for feature in features:
            assert torch.autograd.grad(feature.sum(), x, retain_graph=True)[0].abs().sum() > 0
        found = detector.detect(x)
        assert len(found) == len(x) and all(len(one["boxes"]) for one in found)
        for one in found:
            n, (height, width) = len(one["boxes"]), x.shape[2:]
            assert one["boxes"].shape == (n, 4) and one["boxes"].dtype == torch.float32
            assert one["scores"].shape == one["labels"].shape == (n,) and one["labels"].dtype == torch.int64
            assert (one["scores"].diff() <= 0).all() and not one["scores"].requires_grad
            assert (one["labels"] >= 0).all() and (one["labels"] < len(detector.classes)).all()
            assert ("masks" in one) == detector.has_masks
            if detector.has_masks:
                assert one["masks"].shape == (n, height, width) and one["masks"].dtype == torch.bool

    return check
