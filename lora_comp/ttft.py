"""Test-time fine-tuning: the loop, and nothing about any one method, codec or task.

minimise over what is trained   weight x distortion(x_hat, x) + bits(y, z, adapter) / pixels    (LoRA_comp, eq. 5)
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from lora_comp.entropy.deltas import EXPONENTS, FEW
from lora_comp.ops.swin_block import HALF
from lora_comp.parts import Part

ATTEMPTS = 4  # of `refine`; beside latents, whose steps are cheaper, one
STEPS = 10  # this and the next two lines were found by measuring: docs/ttft.md
BETAS = 0.0, 0.9  # of Adam: in ten steps momentum carries on for too long what the first ones guessed
SHARES = {"y": 2.0, "S": 0.25, "U": 0.5, "V": 0.5}  # of the step size, for what only the encoder has
MILESTONES = (15 / 40, 25 / 40, 30 / 40, 35 / 40)  # of the steps: where the published schedule halves its step size
RECIPES = ("latents", "adapter", "published")


@dataclass
class Fit:
    """The objective before, and after each step; the adapter is left as it was at the lowest."""

    losses: list[float] = field(default_factory=list)

    @property
    def best(self) -> int:
        return min(range(len(self.losses)), key=self.losses.__getitem__)


def fit(
    adapted, x: Tensor, size: tuple[int, int], parts: Sequence[Part], weight: float, steps: int, lr: float,
    seed: int = 0, on_step: Callable[[int, float], None] | None = None, published: bool = False,
) -> Fit:
    """Train what `adapted` leaves trainable on one picture and leave it at its best step.

    Args:
        adapted: a codec prepared by a method: `analyse(x)` returns y_hat and likelihoods, `synthesise(y_hat)` the
            decoded; `bits()` is the rate of what travels beside the latents.
        x: float32 (1, 3, H', W'), padded to what the codec takes; `size` is the picture's own (H, W).
        parts: of the picture, with the task's distortion of each; see `parts.in_parts`.
        weight: of the distortion against bits per pixel.
        steps: updates of Adam; after `steps` of them the loop ends.
        lr: the first step size of what travels, and with its share of `SHARES` of the rest; it falls to 0 linearly.
        on_step: told the step and its objective.
        published: one step size for all, halved at `MILESTONES`, and Adam with its usual momentum, as in the paper.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        descent = (_published_descent if published else _descent)(adapted, lr, steps)
        return _fit(adapted, x, size, parts, weight, steps, on_step, *descent)


def half_pays(device: torch.device) -> bool:
    """Whether the steps' products are of bfloat16 numbers: on a GPU, and where the processor has AMX."""
    return device.type == "cuda" or HALF


def _descent(adapted, lr: float, steps: int) -> tuple[Optimizer, LRScheduler]:
    groups = []
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            share = SHARES[name.rpartition(".")[2]] if ".g_a." in name else 1.0
            groups.append({"params": [parameter], "lr": lr * share})
    optimizer = torch.optim.Adam(groups, betas=BETAS)
    return optimizer, LambdaLR(optimizer, lambda step: 1 - step / max(steps, 1))


def _published_descent(adapted, lr: float, steps: int) -> tuple[Optimizer, LRScheduler]:
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=lr)
    return optimizer, MultiStepLR(optimizer, [math.ceil(m * steps) for m in MILESTONES], gamma=0.5)


def _fit(adapted, x, size, parts, weight, steps, on_step, optimizer, schedule) -> Fit:
    trained = [p for p in adapted.parameters() if p.requires_grad]
    result = Fit()
    kept: list[Tensor] = []
    for step in range(steps + 1):
        trains = step < steps
        optimizer.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(trains):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half_pays(x.device)):
                out = adapted.analyse(x)
            bits = adapted.bits() + sum(-p.log2().sum() for p in out["likelihoods"].values())
            rate = bits / (size[0] * size[1])
            y_hat = out["y_hat"].detach().requires_grad_(trains)
            loss = rate.item()
            for part in parts:
                with torch.autocast(x.device.type, torch.bfloat16, enabled=half_pays(x.device)):
                    distance = weight * distance_of(part, adapted, y_hat)
                loss += distance.item()
                if trains:
                    distance.backward()
        result.losses.append(loss)
        if result.best == step:
            kept = [p.detach().clone() for p in trained]
        if on_step:
            on_step(step, result.losses[-1])
        if step < steps:
            torch.autograd.backward([rate, out["y_hat"]], [None, y_hat.grad])
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        for parameter, value in zip(trained, kept, strict=True):
            parameter.copy_(value)
    return result


def distance_of(part: Part, adapted, y_hat: Tensor) -> Tensor:
    """A part's share of the picture's distortion: a scalar."""
    (rows, columns), (own_rows, own_columns) = part.latents, part.own
    latents = y_hat[..., rows, columns].contiguous(memory_format=torch.channels_last)
    x_hat = adapted.synthesise(latents)[..., own_rows, own_columns].float().clamp(0, 1)
    return part.share * part.distortion(x_hat).sum()


def refine(
    adapted, x: Tensor, size: tuple[int, int], parts: Sequence[Part], weight: float, attempts: int = ATTEMPTS,
) -> None:
    """Choose what travels, and the step it is rounded to, at the lowest true objective found in a few attempts.

    The analysis transform and so the latents stay as `fit` left them: only the synthesis and the task run. The slope of
    the distortion tells which whole numbers should be better, and those are kept if they are. Four attempts take as
    long as three or four steps of `fit` with the encoder's adapter. Where more travels than `deltas.FEW` nothing is
    done.

    Args:
        adapted: after `fit`; also has `place`, `propose` and `travelling_parameters`, see `methods.svd_lora.Adapted`.
        x, size, parts, weight: as for `fit`.
    """
    if len(adapted.whole()) > FEW:
        return
    with torch.no_grad():
        y_hat = adapted.analyse(x)["y_hat"]
    scale = weight * size[0] * size[1]  # from distortion to bits
    parameters = adapted.travelling_parameters()

    @torch.no_grad()
    def measure() -> float:
        return adapted.bits().item() + sum(scale * distance_of(part, adapted, y_hat).item() for part in parts)

    def slopes() -> tuple[np.ndarray, float]:
        total, objective = np.zeros(len(adapted.whole())), adapted.bits().item()
        for part in parts:
            bits = scale * distance_of(part, adapted, y_hat)
            objective += bits.item()
            total += torch.cat([g.flatten() for g in torch.autograd.grad(bits, parameters)]).double().cpu().numpy()
        return total, objective

    damping, (slope, lowest) = 1.0, slopes()
    for attempt in range(attempts):
        best, before = (adapted.whole(), adapted.exponent), lowest
        nearby = {adapted.exponent, adapted.exponent - 1, adapted.exponent + 1} if attempt == 0 else {adapted.exponent}
        proposals = [(adapted.propose(slope, e, damping), e) for e in sorted(nearby & set(EXPONENTS))]
        for k, exponent in proposals:
            adapted.place(k, exponent)
            objective = measure()
            if objective < lowest:
                best, lowest = (k, exponent), objective
        adapted.place(*best)
        if lowest == before:
            damping *= 4
        elif attempt < attempts - 1:
            slope, _ = slopes()
