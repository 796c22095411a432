"""A step of test-time fine-tuning, and one of training, with and without what is ours: one thread.

Fine-tuning: tic (N=128), 256x256, features of a ResNet-50, random weights. Ours is the engine's step, in bfloat16 where
that pays: with the encoder's adapter trained, as published, and with the latents in its place, as by default. The
published formulation is that of published.py, in float32, in torch's own order of channels, its adapter trained.
Training: tic-s, eight crops of 128x128, bfloat16 where that pays, against Swin blocks of torch's operators.
"""
from contextlib import nullcontext

import pytest
import torch
from published import formulation

import lora_comp as lc
from lora_comp import ops, ttft
from lora_comp.codecs import build
from lora_comp.ops.swin_block import plain_swin_block
from lora_comp.ops.window_attention import plain_window_attention
from lora_comp.training.codec import bits


@pytest.mark.parametrize("trained", ["adapter", "latents"])
@pytest.mark.parametrize("kind", ["ours", "published"])
def test_fine_tuning(benchmark, kind, trained):
    benchmark.group = f"fine-tuning step, tic, 256x256, ResNet-50, {trained} trained"
    torch.manual_seed(0)
    codec, x = lc.load_codec("tic", 1, weights=None), torch.rand(1, 3, 256, 256)
    task = lc.load_task("cls", network="torchvision/resnet50", weights=None)
    method = lc.load_method("svd_lora", codec, adapter=None)
    if kind == "published":
        codec.to(memory_format=torch.contiguous_format)
    adapted = method.prepare(codec, x if kind == "ours" and trained == "latents" else None)
    targets, parameters = task.targets(x), [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    before = [p.detach().clone() for p in parameters]

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=ttft.half_pays(x.device)):
            out = adapted(x)
            distortion = task.distortion(out["x_hat"].float().clamp(0, 1), targets).sum()
        loss = distortion + (adapted.bits() + bits(out["likelihoods"])) / x[0, 0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    with formulation() if kind == "published" else nullcontext():
        assert benchmark.pedantic(step, rounds=4, warmup_rounds=2) > 0
    assert any(not torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


@pytest.mark.parametrize("kind", ["ours", "torch"])
def test_training(benchmark, kind, monkeypatch):
    benchmark.group = "training step, tic-s, eight crops of 128x128"
    if kind == "torch":
        monkeypatch.setattr(ops, "swin_block", plain_swin_block)
        monkeypatch.setitem(plain_swin_block.__globals__, "window_attention", plain_window_attention)
    torch.manual_seed(0)
    codec, x = build("tic-s"), torch.rand(8, 3, 128, 128)
    optimizer = torch.optim.Adam(codec.parameters(), lr=1e-4, fused=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=ttft.half_pays(x.device)):
            out = codec(x)
        loss = 100 * (out["x_hat"].float() - x).square().mean() + bits(out["likelihoods"]) / x[:, 0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    first = step()
    assert benchmark.pedantic(step, rounds=8, warmup_rounds=1) < first
