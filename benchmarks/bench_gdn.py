"""The fused divisive normalisation against compressai.layers.GDN: the layers of tic-v, 256x256.

"bfloat16": x is bfloat16, as the output of a convolution, and the layer runs under autocast. "frozen": gradient of x
only, as in fine-tuning; "trained": also of beta and gamma. The last benchmark is a whole step of fine-tuning of the
latents with the default classifier of `cls`.
"""

import pytest
import torch

import lora_comp as lc
from lora_comp.codecs import tic
from lora_comp.entropy import models
from lora_comp.objective import use_bf16
from lora_comp.ops.swin_block import HALF

KINDS = {"ours": tic.GDN, "CompressAI": models.GDN}


@pytest.fixture(
    params=[
        "float32",
        pytest.param("bfloat16", marks=pytest.mark.skipif(not HALF, reason="the processor has no bfloat16 products")),
    ]
)
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
    benchmark.group = f"{name} forward, tic-v, 256x256, {dtype}"
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
    benchmark.group = f"{name}, both passes, {parameters}, tic-v, 256x256, {dtype}"
    x, grad = problem(dtype).requires_grad_(), problem(dtype).flip(2)

    def step(kind):
        trained = [x, *made[kind].parameters()] if parameters == "trained" else [x]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            y = made[kind](x)
        return torch.autograd.grad(y, trained, grad)

    made = {kind: layer(kind, name).requires_grad_(parameters == "trained") for kind in KINDS}
    grads = benchmark.pedantic(step, (kind,), rounds=20, warmup_rounds=2)
    for grad, expected in zip(grads, step("CompressAI"), strict=True):
        assert (grad - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning(benchmark, kind, monkeypatch):
    benchmark.group = "fine-tuning step, tic-v, 256x256, by its GDN layers"
    monkeypatch.setattr(tic, "GDN", KINDS[kind])
    torch.manual_seed(0)
    codec, x = lc.load_codec("tic-v", 1, weights=None), torch.rand(1, 3, 256, 256)
    task = lc.load_task("cls")
    adapted = lc.load_method("svd_lora", codec, adapter=None).prepare(codec, x)
    targets = task.targets(x)
    trained = [p.requires_grad_() for group in adapted.groups(1.0) for p in group.parameters]

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16(x.device)):
            x_hat = adapted.codec.synthesize(adapted.codec.rate(adapted.latents(x)).y_hat)
            distortion = task.distortion(x_hat.float().clamp(0, 1), targets).sum()
        return torch.autograd.grad(distortion, trained, allow_unused=True)

    assert any(grad is not None for grad in benchmark.pedantic(step, rounds=15, warmup_rounds=2))
