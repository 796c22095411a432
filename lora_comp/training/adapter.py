"""Pre-training of an adapter for a task on many images with the objective of fine-tuning, weight x distortion + bpp
(LoRA_comp, CVPR 2025, "Pre-training").
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
        pretraining: from `METHODS[name].pretrain`.
        quality: the codec's rate point.
        batches: called with the index of the step, returns the images of all processes, float32 (B, 3, H, W) in [0, 1],
            sides multiples of the codec's stride.
        lr: peak learning rate of Adam.
    Returns:
        The tensors of the adapter by name, and the last metrics: loss, bpp, distortion.
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
