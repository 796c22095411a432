"""The fused window attention against scaled_dot_product_attention on partitioned windows, forward and backward.

Shapes: the second stage of tic (N=128) for a 256x256 image, and of tic-v for eight crops of 128x128. One thread in
float32, and a GPU if there is one.
"""

import pytest
import torch
from devices import GPU_TYPES, named, timed

from lora_comp.ops.window_attention import plain_window_attention, window_attention

SHAPES = {"tic, 256x256": (1, 64, 64, 3, 8, 16), "tic-v, 8x128x128": (8, 32, 32, 3, 4, 16)}
KINDS = {"ours": window_attention, "torch": plain_window_attention}
pytestmark = [
    pytest.mark.parametrize("device, dtype", [("cpu", "float32"), *GPU_TYPES]),
    pytest.mark.parametrize("name", SHAPES),
    pytest.mark.parametrize("kind", KINDS),
]


def tensors(name: str, device: str, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    qkv, bias = torch.randn(SHAPES[name]), torch.randn(SHAPES[name][4], 64, 64)
    return qkv.to(device, getattr(torch, dtype)).requires_grad_(), bias.to(device)


def group(name: str, device: str, dtype: str) -> str:
    return named(name if device == "cpu" else f"{name}, {dtype}", device)


def test_forward(benchmark, name, device, dtype, kind):
    benchmark.group = group(f"window attention, forward: {name}", device, dtype)
    qkv, bias = tensors(name, device, dtype)
    with torch.no_grad():
        (out,) = benchmark(timed(lambda: (KINDS[kind](qkv, bias, 8, 4),), device))
        expected = plain_window_attention(qkv.float(), bias, 8, 4)
    assert (out - expected).norm() < {"float32": 1e-4, "bfloat16": 2e-2}[dtype] * expected.norm()


def test_forward_and_backward(benchmark, name, device, dtype, kind):
    benchmark.group = group(f"window attention, forward and backward: {name}", device, dtype)
    qkv, bias = tensors(name, device, dtype)
    direction = torch.randn_like(qkv[..., 0, :, :]).flatten(3)

    def step(attention, qkv):
        return torch.autograd.grad(attention(qkv, bias, 8, 4), qkv, direction.to(qkv.dtype))

    (grad,) = benchmark(timed(lambda: step(KINDS[kind], qkv), device))
    (expected,) = step(plain_window_attention, qkv.detach().float().requires_grad_())
    assert (grad - expected).norm() < {"float32": 1e-4, "bfloat16": 3e-2}[dtype] * expected.norm()
