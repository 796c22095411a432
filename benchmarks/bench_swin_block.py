"""The fused Swin block against torch's operators (the definition in ops/swin_block.py) and the published formulation.

Feature maps: the first stage of tic (N=128) for a 256x256 image, and the second of tic-v. Adapters of rank 4 on qkv and
proj; forward and backward, with gradients of the map and of the adapters or of the block's parameters.
"""

import published
import pytest
import torch

from lora_comp.ops.swin_block import HALF, Layer, Parts, plain_swin_block, swin_block

SHAPES = {"tic": (128, 128, 8), "tic-v": (64, 64, 4)}  # side of the map, channels, heads
KINDS = {"ours": swin_block, "torch": plain_swin_block, "published": published.swin_block}


def random_parts(channels: int, heads: int) -> Parts:
    def layer(inputs: int, outputs: int, rank: int = 0) -> Layer:
        plain = torch.randn(outputs, inputs) / inputs**0.5, torch.zeros(outputs)
        factors = (torch.randn(outputs, rank) / 8, torch.randn(rank), torch.randn(inputs, rank) / 8) if rank else ()
        return Layer(*plain, *(f.requires_grad_() for f in factors))

    norm = torch.ones(channels), torch.zeros(channels)
    return Parts(
        norm,
        layer(channels, 3 * channels, 4),
        torch.randn(heads, 64, 64),
        layer(channels, channels, 4),
        norm,
        layer(channels, 2 * channels),
        layer(2 * channels, channels),
    )


@pytest.fixture(
    params=[
        "float32",
        pytest.param("bfloat16", marks=pytest.mark.skipif(not HALF, reason="the processor has no bfloat16 products")),
    ]
)
def dtype(request):
    return request.param


def problem(name: str) -> tuple[Parts, torch.Tensor]:
    side, channels, heads = SHAPES[name]
    torch.manual_seed(0)
    return random_parts(channels, heads), torch.randn(1, side, side, channels, requires_grad=True)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_forward(benchmark, kind, name, dtype):
    benchmark.group = f"Swin block forward, {name}, 256x256, {dtype}"
    parts, x = problem(name)

    @torch.no_grad()
    def run(block):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return block(x, parts, 8, 4)

    y = benchmark.pedantic(run, (KINDS[kind],), rounds=5, warmup_rounds=1)
    torch.testing.assert_close(y, plain_swin_block(x, parts, 8, 4), rtol=0.05, atol=0.3, check_dtype=False)


def both_passes(benchmark, kind: str, parts: Parts, trained: list[torch.Tensor], dtype: str) -> None:
    def step(block):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            y = block(trained[0], parts, 8, 4)
        return torch.autograd.grad(y.float().square().sum(), trained)

    grads = benchmark.pedantic(step, (KINDS[kind],), rounds=5, warmup_rounds=1)
    for grad, expected in zip(grads, step(plain_swin_block), strict=True):
        assert (grad - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(benchmark, kind, name, dtype):
    benchmark.group = f"Swin block, both passes, {name}, 256x256, {dtype}"
    parts, x = problem(name)
    both_passes(benchmark, kind, parts, [x, *(t for layer in (parts.qkv, parts.proj) for t in layer[2:])], dtype)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["ours", "torch"])
def test_training(benchmark, kind, name, dtype):
    benchmark.group = f"Swin block trained, both passes, {name}, 256x256, {dtype}"
    parts, x = problem(name)
    parts = Parts(*(Layer(*part[:2]) if isinstance(part, Layer) else part for part in parts))
    both_passes(benchmark, kind, parts, [x, *(t.requires_grad_() for t in parts.dense())], dtype)
