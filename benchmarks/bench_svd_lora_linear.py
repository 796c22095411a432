"""A frozen linear layer with a low-rank update of rank 4, forward and backward: one thread, or a GPU.

Each group is a shape, tokens x in -> out. frozen: nn.Linear without an update and the input's gradient only, a lower
bound. PEFT: its LoRA layer, which has no singular values. published: the update is added to the weight, so autograd
computes the weight's dense gradient. BENCH_DTYPE=bfloat16 sets the dtype on the CPU.
"""

import os

import pytest
import torch
import torch.nn.functional as F
from devices import GPU_TYPES, named, timed
from torch import nn

from lora_comp.ops import merge, svd_lora_linear
from lora_comp.ops.svd_lora import plain_svd_lora_linear

SHAPES = [
    (16384, 128, 384),
    (16384, 128, 128),
    (4096, 128, 384),
    (4096, 128, 128),
    (1024, 128, 384),
    (1024, 128, 128),
    (256, 192, 576),
    (256, 192, 192),
]
RANK, SCALE = 4, 2.0
WHERE = [("cpu", os.environ.get("BENCH_DTYPE", "float32")), *GPU_TYPES]


def peft_layer(linear, u, v):
    peft = pytest.importorskip("peft", reason="needs peft: pip install .[bench]")
    layer = peft.tuners.lora.Linear(
        linear, "default", peft.LoraConfig(r=RANK, lora_alpha=int(SCALE * RANK)), r=RANK, lora_alpha=int(SCALE * RANK)
    )
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(v.T)
        layer.lora_B["default"].weight.copy_(u)
    assert not linear.weight.requires_grad
    return layer


def published(x, weight, bias, u, s, v, scale):
    return F.linear(x, merge(weight, u, s, v, scale).to(x.dtype), bias)


@pytest.mark.parametrize("kind", ["ours", "frozen", "PEFT", "published"])
@pytest.mark.parametrize("tokens, inputs, outputs", SHAPES)
@pytest.mark.parametrize("device, name", WHERE)
def test_forward_and_backward(benchmark, tokens, inputs, outputs, kind, device, name):
    torch.manual_seed(0)
    benchmark.group = named(f"low-rank layer, {tokens}x{inputs} -> {outputs}, {name}", device)
    dtype = getattr(torch, name)
    linear = nn.Linear(inputs, outputs).to(device, dtype).requires_grad_(False)
    x = torch.randn(tokens, inputs).to(device, dtype).requires_grad_()
    u, v = torch.randn(outputs, RANK).to(device) / 8, torch.randn(inputs, RANK).to(device) / 8
    s = torch.zeros(RANK, device=device) if kind == "frozen" else torch.ones(RANK, device=device)
    usv = [t.requires_grad_() for t in (u, s, v)]
    if kind == "frozen":
        layer, trained = linear, [x]
    elif kind == "PEFT":
        layer = peft_layer(linear, u.detach(), v.detach())
        trained = [x, layer.lora_B["default"].weight, layer.lora_A["default"].weight]
    else:
        function = {"ours": svd_lora_linear, "published": published}[kind]
        trained = [x, *usv]

        def layer(x):
            return function(x, linear.weight, linear.bias, *usv, SCALE)

    direction = torch.randn(tokens, outputs).to(device, dtype)

    def step():
        y = layer(x)
        return y, *torch.autograd.grad(y, trained, direction)

    run = timed(step, device)
    run()
    y, *grads = benchmark(run)
    twins = [t.detach().double().requires_grad_() for t in (x, *usv)]
    expected = plain_svd_lora_linear(twins[0], linear.weight.double(), linear.bias.double(), *twins[1:], SCALE)
    expected_grads = torch.autograd.grad(expected, twins, direction.double())
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert (y - expected).norm() < tolerance * expected.norm()
    chosen = {"frozen": [0], "PEFT": [0, 1, 3]}.get(kind, [0, 1, 2, 3])
    for grad, i in zip(grads, chosen, strict=True):
        grad = grad.T if kind == "PEFT" and i == 3 else grad
        assert (grad - expected_grads[i]).norm() < tolerance * expected_grads[i].norm()
