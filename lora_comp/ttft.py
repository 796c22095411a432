"""Test-time fine-tuning: the loop, and nothing about any one method, codec or task.

minimise over what is trained   weight x distortion(x_hat, x) + bits(y, z, adapter) / pixels    (LoRA_comp, eq. 5)

Images of one size are fitted together, each by itself: every trained tensor has a first dimension of images, and
the gradient of the sum of their objectives is that of each, which Adam scales value by value. So an image comes to
what it would alone, but for the order of sums in float32.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lora_comp.entropy.deltas import EXPONENTS, FEW
from lora_comp.ops.swin_block import HALF
from lora_comp.parts import Part
from lora_comp.replay import Replayed

ATTEMPTS = 4  # of `refine`; beside latents, whose steps are cheaper, one
STEPS = 10  # this and the next two lines were found by measuring: docs/ttft.md
BETAS = 0.0, 0.9  # of Adam: in ten steps momentum carries on for too long what the first ones guessed
SHARES = {"y": 2.0, "S": 0.25, "U": 0.5, "V": 0.5}  # of the step size, for what only the encoder has
MILESTONES = (15 / 40, 25 / 40, 30 / 40, 35 / 40)  # of the steps: where the published schedule halves its step size
RECIPES = ("latents", "adapter", "published")


def fit(
    adapted,
    x: Tensor,
    size: tuple[int, int],
    parts: Sequence[Part],
    weight: float,
    steps: int,
    lr: float,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
    published: bool = False,
) -> Tensor:
    """Train what `adapted` leaves trainable on images of one size and leave each at its best step.

    Args:
        adapted: a codec prepared by a method: `analyse(x)` returns y_hat and likelihoods, `synthesize(y_hat)` the
            decoded; `bits()` (B,) is the rate of what travels beside the latents.
        x: float32 (B, 3, H', W'), padded to what the codec takes; `size` is the images' own (H, W).
        parts: of the images, with the task's distortions (B,) of each; see `parts.in_parts`.
        weight: of the distortion against bits per pixel.
        steps: updates of Adam; after `steps` of them the loop ends.
        lr: the first step size of what travels, and with its share of `SHARES` of the rest; it falls to 0 linearly.
        on_step: told the step and the mean of the objectives before it, for which a GPU has to wait; last, after all.
        published: one step size for all, halved at `MILESTONES`, and Adam with its usual momentum, as in the paper.
    Returns:
        The objectives before, and after each step: float32 (steps + 1, B).
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        descent = _Descent(adapted, x, size, parts, weight, steps, lr, published)
        take_step, losses = Replayed(descent.take_step, x.device), []
        for step in range(steps + 1):
            if step < steps:
                descent.set_rates(step)
            losses.append(take_step() if step < steps else descent.look())
            if on_step:
                on_step(step, losses[-1].mean().item())
        descent.go_back()
        return torch.stack(losses)


def use_bf16(device: torch.device) -> bool:
    """Whether the steps' products are of bfloat16 numbers: on a GPU, and where the processor has AMX."""
    return device.type == "cuda" or HALF


class _Descent:
    """Adam on what is trained, and each image's best step so far, on tensors that stay where they are: a GPU can
    replay a step."""

    def __init__(self, adapted, x, size, parts, weight, steps, lr, published):
        self.adapted, self.x, self.size, self.parts, self.weight = adapted, x, size, parts, weight
        trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
        groups = {}  # of what is trained, by step size
        for name, parameter in trained.items():
            share = SHARES[name.rpartition(".")[2]] if ".g_a." in name and not published else 1.0
            groups.setdefault(lr * share, []).append(parameter)
        self.rates, self.steps, self.published = list(groups), steps, published
        self.optimizer = torch.optim.Adam(
            [{"params": group, "lr": x.new_tensor(rate) if x.is_cuda else rate} for rate, group in groups.items()],
            betas=(0.9, 0.999) if published else BETAS,
            capturable=x.is_cuda,
        )
        self.trained, self.kept = list(trained.values()), [p.detach().clone() for p in trained.values()]
        self.lowest = x.new_full((len(x),), math.inf)

    def set_rates(self, step: int) -> None:
        """The step sizes of this step: they fall to 0 linearly or, as published, are halved."""
        falls = 0.5 ** sum(step >= math.ceil(m * self.steps) for m in MILESTONES)
        factor = falls if self.published else 1 - step / self.steps
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def take_step(self) -> Tensor:
        """The objectives (B,) before the step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.look(trains=True)
        self.optimizer.step()
        return loss

    def look(self, trains: bool = False) -> Tensor:
        """The objectives (B,), and what is trained kept where they are lowest; if `trains`, with gradients."""
        with torch.set_grad_enabled(trains):
            with torch.autocast(self.x.device.type, torch.bfloat16, enabled=use_bf16(self.x.device)):
                out = self.adapted.analyse(self.x)
            bits = self.adapted.bits() + sum(-p.log2().flatten(1).sum(1) for p in out["likelihoods"].values())
            rate = bits / (self.size[0] * self.size[1])  # (B,)
            y_hat = out["y_hat"].detach().requires_grad_(trains)
            loss = rate.detach()
            for part in self.parts:
                with torch.autocast(self.x.device.type, torch.bfloat16, enabled=use_bf16(self.x.device)):
                    distance = self.weight * distance_of(part, self.adapted, y_hat)
                loss = loss + distance.detach()
                if trains:
                    distance.sum().backward()
            if trains:
                torch.autograd.backward([rate.sum(), out["y_hat"]], [None, y_hat.grad])
        lower = loss < self.lowest
        self.lowest.copy_(torch.where(lower, loss, self.lowest))
        for parameter, kept in zip(self.trained, self.kept, strict=True):
            kept.copy_(torch.where(_like(lower, kept), parameter.detach(), kept))
        return loss

    @torch.no_grad()
    def go_back(self) -> None:
        """To the best step of each image."""
        for parameter, kept in zip(self.trained, self.kept, strict=True):
            parameter.copy_(kept)


def _like(value: Tensor, of: Tensor) -> Tensor:
    """A value for each image, (B,), shaped to meet a tensor (B, ...)."""
    return value.view(-1, *(1 for _ in of.shape[1:]))


def distance_of(part: Part, adapted, y_hat: Tensor) -> Tensor:
    """A part's share of each image's distortion: (B,)."""
    (rows, columns), (own_rows, own_columns) = part.latents, part.own
    latents = y_hat[..., rows, columns].contiguous(memory_format=torch.channels_last)
    x_hat = adapted.synthesize(latents)[..., own_rows, own_columns].float().clamp(0, 1)
    return part.share * part.distortion(x_hat)


def refine(
    adapted,
    x: Tensor,
    size: tuple[int, int],
    parts: Sequence[Part],
    weight: float,
    attempts: int = ATTEMPTS,
) -> None:
    """Choose what travels, and the step it is rounded to, at the lowest true objective found in a few attempts.

    The analysis transform and so the latents stay as `fit` left them: only the synthesis and the task run. The slope of
    the distortion tells which whole numbers should be better, and those are kept if they are, of each image its own.
    Four attempts take as long as three or four steps of `fit` with the encoder's adapter. Where more travels than
    `deltas.FEW` nothing is done.

    Args:
        adapted: after `fit`; also has `place`, `propose` and `travelling_parameters`, see `methods.svd_lora.Adapted`.
        x, size, parts, weight: as for `fit`.
    """
    whole = adapted.whole()  # (B, n)
    if whole.shape[1] > FEW:
        return
    with torch.no_grad():
        y_hat = adapted.analyse(x)["y_hat"]
    scale = weight * size[0] * size[1]  # from distortion to bits
    parameters = adapted.travelling_parameters()

    @torch.no_grad()
    def measure() -> np.ndarray:
        return _numpy(adapted.bits()) + sum(_numpy(scale * distance_of(part, adapted, y_hat)) for part in parts)

    def slopes() -> tuple[np.ndarray, np.ndarray]:
        total, objective = np.zeros(whole.shape), _numpy(adapted.bits())
        for part in parts:
            bits = scale * distance_of(part, adapted, y_hat)
            objective = objective + _numpy(bits)
            total += _numpy(torch.cat([g.flatten(1) for g in torch.autograd.grad(bits.sum(), parameters)], 1))
        return total, objective

    damping, (slope, lowest) = np.ones(len(x)), slopes()
    for attempt in range(attempts):
        k, exponent, before = adapted.whole(), adapted.exponent, lowest
        nearby = [np.clip(exponent + e, EXPONENTS[0], EXPONENTS[-1]) for e in ((-1, 0, 1) if attempt == 0 else (0,))]
        for proposal in [(adapted.propose(slope, e, damping), e) for e in nearby]:
            adapted.place(*proposal)
            objective = measure()
            lower = objective < lowest
            lowest = np.where(lower, objective, lowest)
            k, exponent = np.where(lower[:, None], proposal[0], k), np.where(lower, proposal[1], exponent)
        adapted.place(k, exponent)
        improved = lowest < before
        damping[~improved] *= 4
        if improved.any() and attempt < attempts - 1:
            slope, _ = slopes()


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
