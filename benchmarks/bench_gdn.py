"""The fused divisive normalisation against compressai.layers.GDN: the layers of tic-s, 256x256.

Under "bfloat16" x is of that type, as a convolution leaves it, and the layer runs under autocast. Frozen: with the
gradient of x alone, as in fine-tuning; trained: with those of beta and gamma too.
"""
import pytest
import torch

from lora_comp.codecs.tic import GDN
from lora_comp.entropy import models
from lora_comp.ops.swin_block import HALF

KINDS = {"ours": GDN, "CompressAI": models.GDN}


@pytest.fixture(params=["float32", pytest.param("bfloat16", marks=pytest.mark.skipif(
    not HALF, reason="the processor does not multiply in bfloat16"))])
def dtype(request):
    return request.param


@pytest.fixture(params=["GDN", "inverse GDN"])
def name(request):
    return request.param


def layer(kind: str, name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = KINDS[kind](64, inverse=name == "inverse GDN")
    made.gamma.data += torch.rand(64, 64) / 16
    return made


def problem(dtype: str) -> torch.Tensor:
    """x (1, 64, 128, 128)."""
    torch.manual_seed(0)
    return torch.randn(1, 64, 128, 128).contiguous(memory_format=torch.channels_last).to(getattr(torch, dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_forward(benchmark, kind, name, dtype):
    benchmark.group = f"{name} forward, tic-s, 256x256, {dtype}"
    x = problem(dtype)

    @torch.no_grad()
    def run(kind):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return made[kind](x)

    made = {kind: layer(kind, name) for kind in KINDS}
    y = benchmark.pedantic(run, (kind,), rounds=20, warmup_rounds=2)
    torch.testing.assert_close(y, run("CompressAI"), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("parameters", ["frozen", "trained"])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(benchmark, kind, name, dtype, parameters):
    benchmark.group = f"{name}, both passes, {parameters}, tic-s, 256x256, {dtype}"
    x, grad = problem(dtype).requires_grad_(), problem(dtype).flip(2)

    def step(kind):
        trained = [x, *made[kind].parameters()] if parameters == "trained" else [x]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            y = made[kind](x)
        return torch.autograd.grad(y, trained, grad)

    made = {kind: layer(kind, name).requires_grad_(parameters == "trained") for kind in KINDS}
    grads = benchmark.pedantic(step, (kind,), rounds=20, warmup_rounds=2)
    for found, wanted in zip(grads, step("CompressAI"), strict=True):
        assert (found - wanted).norm() < 0.05 * wanted.norm()
