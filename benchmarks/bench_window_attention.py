"""The fused window attention against scaled_dot_product_attention on partitioned windows, forward and backward.

Shapes: the second stage of tic (N=128) for a 256x256 picture, and of tic-s for a batch of eight crops of 128x128.
"""
import pytest
import torch

from lora_comp.ops.window_attention import plain_window_attention, window_attention

SHAPES = {"tic, 256x256": (1, 64, 64, 3, 8, 16), "tic-s, 8x128x128": (8, 32, 32, 3, 4, 16)}
KINDS = {"ours": window_attention, "torch": plain_window_attention}


@pytest.fixture(params=SHAPES)
def problem(request):
    torch.manual_seed(0)
    shape = SHAPES[request.param]
    return torch.randn(shape, requires_grad=True), torch.randn(shape[4], 64, 64), request.param


@pytest.mark.parametrize("kind", KINDS)
def test_forward(benchmark, problem, kind):
    qkv, bias, name = problem
    benchmark.group = f"window attention, forward: {name}"
    with torch.no_grad():
        out = benchmark(KINDS[kind], qkv, bias, 8, 4)
        torch.testing.assert_close(out, plain_window_attention(qkv, bias, 8, 4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(benchmark, problem, kind):
    qkv, bias, name = problem
    benchmark.group = f"window attention, forward and backward: {name}"

    def step(attention):
        return torch.autograd.grad(attention(qkv, bias, 8, 4).square().sum(), qkv)[0]

    grad = benchmark(step, KINDS[kind])
    torch.testing.assert_close(grad, step(plain_window_attention), rtol=1e-3, atol=1e-3)
