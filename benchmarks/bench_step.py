"""A step of test-time fine-tuning, and one of training, with and without what is ours: one thread.

Fine-tuning: tic (N=128), 256x256, features of a ResNet-50, random weights. Ours is the engine's step, in bfloat16 where
the processor has it: with the encoder's adapter trained, as published, and with the latents trained in its place. The
published formulation is that of published.py, in float32 and in torch's own order of channels.
Training: tic-s, eight crops of 128x128, bfloat16 where torch takes it, against torch's attention.
"""
import pytest
import torch
from published import swin_block

import lora_comp as lc
from lora_comp import ops, ttft
from lora_comp.codecs import build
from lora_comp.ops.window_attention import plain_window_attention
from lora_comp.training.codec import bits


def benchmark_step(benchmark, recipe, published):
    torch.manual_seed(0)
    codec = lc.load_codec("tic", 1, weights=None)
    task = lc.load_task("cls", network="torchvision/resnet50", weights=None)
    x = torch.rand(1, 3, 256, 256)
    if published:
        codec.to(memory_format=torch.contiguous_format)
    adapted = lc.load_method("svd_lora", codec, adapter=None).prepare(codec, x if recipe == "latents" else None)
    targets, trained = task.targets(x), [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    before = [p.detach().clone() for p in trained]

    def step():
        with ttft.precision(x.device, "float32" if published else "auto"):
            out = adapted(x)
            distortion = task.distortion(out["x_hat"].float(), targets).sum()
        loss = distortion + (adapted.bits() + bits(out["likelihoods"])) / x[0, 0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    assert benchmark.pedantic(step, rounds=4, warmup_rounds=2) > 0
    assert any(not torch.equal(p, q) for p, q in zip(trained, before, strict=True))


@pytest.mark.benchmark(group="fine-tuning step of tic, 256x256, ResNet-50")
@pytest.mark.parametrize("kind", ["ours", "published"])
def test_fine_tuning(benchmark, kind, monkeypatch):
    if kind == "published":
        monkeypatch.setattr(ops, "swin_block", swin_block)
    benchmark_step(benchmark, "adapter", kind == "published")


@pytest.mark.benchmark(group="the same, latents trained in place of the encoder's adapter")
@pytest.mark.parametrize("kind", ["ours", "published"])
def test_fine_tuning_of_latents(benchmark, kind, monkeypatch):
    if kind == "published":
        monkeypatch.setattr(ops, "swin_block", swin_block)
    benchmark_step(benchmark, "adapter" if kind == "published" else "latents", kind == "published")
