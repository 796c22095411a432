"""A step of test-time fine-tuning, and one of training, with and without what is ours: one thread.

Fine-tuning: tic (N=128), 256x256, features of a ResNet-50, random weights. The published formulation adds the update to
the weight, whose dense gradient is then formed, and attends with torch's scaled_dot_product_attention.
Training: tic-s, eight crops of 128x128, bfloat16 where torch takes it.
"""
import pytest
import torch
import torch.nn.functional as F

import lora_comp as lc
from lora_comp import ops
from lora_comp.codecs import build
from lora_comp.methods.svd_lora import LowRankLinear
from lora_comp.ops.window_attention import plain_window_attention
from lora_comp.training.codec import bits


def merged(self, x):
    u, s, v = (self.value(name) for name in "USV")
    return F.linear(x, ops.merge(self.layer.weight, u, s, v, self.scale), self.layer.bias)


@pytest.fixture(params=["ours", "published"])
def kind(request, monkeypatch):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if request.param == "published":
        monkeypatch.setattr(ops, "window_attention", plain_window_attention)
        monkeypatch.setattr(LowRankLinear, "forward", merged)
    return request.param


@pytest.mark.benchmark(group="fine-tuning step")
def test_fine_tuning(benchmark, kind):
    codec = lc.load_codec("tic", 1, weights=None)
    task = lc.load_task("cls", network="torchvision/resnet50", weights=None)
    adapted = lc.load_method("svd_lora", codec, adapter=None).prepare(codec)
    x = torch.rand(1, 3, 256, 256)
    targets, trained = task.targets(x), [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    before = [p.detach().clone() for p in trained]

    def step():
        out = adapted(x)
        rate = adapted.bits() + bits(out["likelihoods"])
        loss = task.distortion(out["x_hat"], targets).sum() + rate / x[0, 0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    assert benchmark.pedantic(step, rounds=4, warmup_rounds=1) > 0
    assert any(not torch.equal(p, q) for p, q in zip(trained, before, strict=True))


@pytest.mark.benchmark(group="training step")
def test_training(benchmark, kind):
    codec, x = build("tic-s"), torch.rand(8, 3, 128, 128)
    optimizer = torch.optim.Adam(codec.parameters(), lr=1e-4, fused=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            out = codec(x)
        loss = 100 * (out["x_hat"].float() - x).square().mean() + bits(out["likelihoods"]) / x[:, 0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    first = step()
    assert benchmark.pedantic(step, rounds=8, warmup_rounds=1) < first
