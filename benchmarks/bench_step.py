"""A step of test-time fine-tuning and one of training, ours and others': one thread, or a GPU.

Fine-tuning: tic (N=128), 256x256, features of a ResNet-50, random weights. Ours is a step of `finetune`, in bfloat16 if
`use_bf16`, and trains the encoder's adapter, as published, or the latents, the default. The published formulation
(published.py) runs in float32 and channels-first, trains the adapter, and processes one image at a time. On a GPU ours
replays a CUDA graph captured during warm-up. Training: tic-v, eight crops of 128x128, bfloat16 if `use_bf16`, against
Swin blocks of torch's operators.
"""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from devices import ON_GPU
from published import formulation

import lora_comp as lc
from lora_comp import ops
from lora_comp.codecs import build, code_length
from lora_comp.finetune import Schedule, _Descent
from lora_comp.methods import FitSettings
from lora_comp.methods.svd_lora import OURS, published_factor
from lora_comp.objective import Objective, tiles, use_bf16
from lora_comp.ops.swin_block import plain_swin_block
from lora_comp.ops.window_attention import plain_window_attention
from lora_comp.replay import Replayed


@pytest.mark.parametrize("device, images", [("cpu", 1), *(pytest.param("cuda", n, marks=ON_GPU) for n in (1, 16))])
@pytest.mark.parametrize("trained", ["adapter", "latents"])
@pytest.mark.parametrize("kind", ["ours", "published"])
def test_fine_tuning(benchmark, kind, trained, device, images):
    where = "" if device == "cpu" else f", {images} on a GPU"
    benchmark.group = f"fine-tuning step, tic, 256x256, ResNet-50, {trained} trained{where}"
    torch.manual_seed(0)
    codec = lc.load_codec("tic", 1, weights=None).to(device)
    task = lc.load_task("cls", network="torchvision/resnet50", weights=None).to(device)
    method = lc.load_method("svd_lora", codec, adapter=None)
    together = images if kind == "ours" else 1
    x = torch.rand(together, 3, 256, 256).to(device)
    if kind == "published":
        codec.to(memory_format=torch.contiguous_format)
    adapted = method.prepare(codec, x, FitSettings(recipe=trained if kind == "ours" else "published"))
    whole = tiles((256, 256), codec, lambda *_: partial(task.distortion, targets=task.targets(x)))
    objective = Objective(x, (256, 256), whole, 1.0)
    schedule = OURS if kind == "ours" else Schedule(published_factor)
    descent = _Descent(partial(objective.evaluate, adapted), adapted.groups(1e-2), 10, schedule)
    descent.set_rates(0)
    before = [p.detach().clone() for p in descent.trained]
    take_step = Replayed(descent.take_step, x.device) if kind == "ours" else descent.take_step

    def step():
        for _ in range(images // together):
            objectives = take_step()
        return objectives.sum().item()  # synchronises a GPU

    with formulation() if kind == "published" else nullcontext():
        assert benchmark.pedantic(step, rounds=4, warmup_rounds=2) > 0
    assert any(not torch.equal(p, q) for p, q in zip(descent.trained, before, strict=True))


@pytest.mark.parametrize("kind", ["ours", "torch"])
def test_training(benchmark, kind, monkeypatch):
    benchmark.group = "training step, tic-v, eight crops of 128x128"
    if kind == "torch":
        monkeypatch.setattr(ops, "swin_block", plain_swin_block)
        monkeypatch.setitem(plain_swin_block.__globals__, "window_attention", plain_window_attention)
    torch.manual_seed(0)
    codec, x = build("tic-v"), torch.rand(8, 3, 128, 128)
    optimizer = torch.optim.Adam(codec.parameters(), lr=1e-4, fused=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16(x.device)):
            out = codec(x)
        bpp = code_length(out["likelihoods"]).sum() / x[:, 0].numel()
        loss = 100 * (out["x_hat"].float() - x).square().mean() + bpp
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    first = step()
    assert benchmark.pedantic(step, rounds=8, warmup_rounds=1) < first
