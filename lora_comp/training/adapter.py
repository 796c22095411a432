"""Pre-training of an adapter for a task on many images with the objective of fine-tuning, weight x distortion + bpp
(LoRA_comp, CVPR 2025, "Pre-training"). The adapter of a codec of variable rate serves all rates: it is trained with
images at rates drawn from its range (`Rates`). An adapter that moves a codec to another rate is trained for that one,
and one that moves it to any of several for those.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lora_comp.codecs import code_length
from lora_comp.methods.method import Pretraining
from lora_comp.objective import use_bf16
from lora_comp.training import loop, parallel
from lora_comp.training.rates import Rates

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
PLATEAU_STEPS = 500  # between two validations; the published ones are epochs of about as many steps


def losses(module: nn.Module, rates: Rates, task: Any, x: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of images x (B, 3, H, W), and (B,) each their bits per pixel and distortions.

    factors: of `Rates.draw`.
    """
    quality, of_bpp, of_distortion = factors
    with torch.autocast(x.device.type, torch.bfloat16, enabled=use_bf16(x.device)):
        out = rates.at(module, quality)(x)
    bpp = code_length(out["likelihoods"]) / x[0, 0].numel()
    distortion = task.distortion(out["x_hat"].float().clamp(0, 1), task.targets(x))
    return (of_distortion * distortion + of_bpp * bpp).mean(), bpp, distortion


@torch.no_grad()
def validate(module: nn.Module, rates: Rates, task: Any, x: Tensor) -> dict[str, float]:
    """The loss of held out images (n, 3, H, W)."""
    module.eval()
    loss = losses(module, rates, task, x, rates.draw(0, len(x)).to(x.device))[0].item()
    module.train()
    return {"val_loss": loss}


def checkpoint(pretraining: Pretraining, **optimizers: Any) -> dict[str, Any]:
    """What a checkpoint of a training holds."""
    stored = nn.ParameterDict({name.replace(".", "/"): p for name, p in pretraining.trained.items()})
    norms = [module for module in pretraining.module.modules() if isinstance(module, nn.BatchNorm2d)]
    of_norms = {"norms": nn.ModuleList(norms)} if norms else {}  # their running statistics are no parameters
    return {"adapter": stored, **optimizers, **of_norms}


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
    optimizer: str = "adam",
    held_out: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict]:
    """Train an adapter on a frozen codec, on the codec's device; see `loop.fit` for the budget and `folder`.

    Args:
        pretraining: from `METHODS[name].pretrain`.
        qualities: the rate point of the objective, the codec's or a target, or all of a codec of variable rate or of an
            adapter for several rates.
        batches: called with the index of the step, returns the images of all processes, float32 (B, 3, H, W) in [0, 1],
            sides multiples of the codec's stride.
        lr: peak learning rate.
        optimizer: a key of `OPTIMIZERS`.
        held_out: images (n, 3, H, W) whose loss, every `PLATEAU_STEPS`, decides on the learning rate: it is multiplied
            by 0.3 when the loss has not fallen in four validations more. None: the learning rate follows a cosine.
    Returns:
        The tensors of the adapter by name, and the last metrics: loss, bpp, distortion.
    """
    device = next(pretraining.module.parameters()).device
    parameters = list(pretraining.trained.values())
    for parameter in parameters:
        parameter.requires_grad_()
    descent = OPTIMIZERS[optimizer](parameters, lr=lr)
    rates = Rates(qualities, task.weight)
    plateau, validated = None, None
    if held_out is not None:
        plateau = ReduceLROnPlateau(descent, factor=0.3, patience=4)
        validated = partial(validate, pretraining.module, rates, task, held_out.to(device))

    def step(i: int, progress: float) -> dict[str, float]:
        if plateau is None:
            for group in descent.param_groups:
                group["lr"] = lr * loop.cosine(progress)
        x = batches(i)
        share = parallel.share(len(x))
        factors = rates.draw(i, len(x))[:, share].to(device)
        loss, bpp, distortion = losses(pretraining.module, rates, task, x[share].to(device), factors)
        descent.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        descent.step()
        if plateau and validated and (i + 1) % PLATEAU_STEPS == 0:
            plateau.step(validated()["val_loss"])
        return parallel.mean({"loss": loss.item(), "bpp": bpp.mean().item(), "distortion": distortion.mean().item()})

    optimizers = {"optimizer" if optimizer == "adam" else optimizer: descent}
    row = loop.fit(
        folder,
        checkpoint(pretraining, **optimizers, **({} if plateau is None else {"plateau": plateau})),
        step,
        steps=steps,
        minutes=minutes,
        seed=seed,
        validate=validated,
        title=f"{task.key} {rates}",
    )
    return dict(pretraining.tensors()), row
