"""Pre-training of an adapter for a task on many images with the objective of fine-tuning, weight x distortion + bpp
(LoRA_comp, CVPR 2025, "Pre-training"). The adapter of a codec of variable rate serves all rates: it is trained with
images at rates drawn from its range (`Rates`). An adapter that moves a codec to another rate is trained for that one.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_comp.codecs import code_length
from lora_comp.methods.method import Pretraining
from lora_comp.objective import use_bf16
from lora_comp.training import loop, parallel
from lora_comp.training.rates import Rates


def train(
    pretraining: Pretraining,
    qualities: tuple[float, ...],
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
        qualities: the rate point of the objective, the codec's or a target, or all of a codec of variable rate.
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
    rates = Rates(qualities, task.weight)

    def step(i: int, progress: float) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = lr * loop.cosine(progress)
        x = batches(i)
        share = parallel.share(len(x))
        factors = rates.draw(i, len(x))[:, share].to(device)
        x, (quality, of_bpp, of_distortion) = x[share].to(device), factors
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device)):
            out = rates.at(pretraining.module, quality)(x)
        bpp = code_length(out["likelihoods"]) / x[0, 0].numel()
        distortion = task.distortion(out["x_hat"].float().clamp(0, 1), task.targets(x))
        loss = (of_distortion * distortion + of_bpp * bpp).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return parallel.mean({"loss": loss.item(), "bpp": bpp.mean().item(), "distortion": distortion.mean().item()})

    stored = nn.ParameterDict({name.replace(".", "/"): p for name, p in pretraining.trained.items()})
    row = loop.fit(
        folder,
        {"adapter": stored, "optimizer": optimizer},
        step,
        steps=steps,
        minutes=minutes,
        seed=seed,
        title=f"{task.key} {rates}",
    )
    return dict(pretraining.tensors()), row
