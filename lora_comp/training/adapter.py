"""Pre-training an adapter for a task: weight x distortion + bpp, the objective of fine-tuning, over many images.

See "Pre-training" in LoRA_comp, CVPR 2025.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_comp.methods.method import Pretraining
from lora_comp.objective import use_bf16
from lora_comp.training import loop, parallel
from lora_comp.training.codec import bits


def train(
    pretraining: Pretraining,
    quality: float,
    task: Any,
    batches: Any,
    folder: Path,
    *,
    lr: float,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict]:
    """Train an adapter on a frozen codec, on the codec's device; see `loop.fit` for the budget and `folder`.

    Args:
        pretraining: from `METHODS[name].pretrain`. quality: the codec's rate point.
        batches: called with the step, gives images float32 (B, 3, H, W), sides multiples of the codec's stride, for all
            processes.
    Returns:
        The tensors of the adapter by name, and the last metrics.
    """
    device = next(pretraining.module.parameters()).device
    parameters = list(pretraining.trained.values())
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=lr)
    weight = task.weight(quality)

    def step(i: int, progress: float) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = lr * loop.cosine(progress)
        x = batches(i)
        x = x[parallel.share(len(x))].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device)):
            out = pretraining.module(x)
        bpp = bits(out["likelihoods"]) / (x.numel() / 3)
        distortion = task.loss(out["x_hat"].float().clamp(0, 1), x)
        loss = weight * distortion + bpp
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return parallel.mean({"loss": loss.item(), "bpp": bpp.item(), "distortion": distortion.item()})

    stored = nn.ParameterDict({name.replace(".", "/"): p for name, p in pretraining.trained.items()})
    row = loop.fit(
        folder,
        {"adapter": stored, "optimizer": optimizer},
        step,
        steps=steps,
        minutes=minutes,
        seed=seed,
        title=f"{task.key} quality {quality:g}",
    )
    return dict(pretraining.tensors()), row
