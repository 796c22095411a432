"""Gradient descent on named groups of parameters under a schedule; nothing about any one method, codec or task.

Images of one size are fitted together, each independently: every parameter has a first dimension of images, the
gradient of the sum of their objectives is that of each, and Adam scales it value by value. So the result for an image
is that of fitting it alone, up to the order of float32 sums.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_comp.replay import Replayed

OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class Group:
    """Parameters (B, ...) that share a learning rate, that of the first step."""

    parameters: Sequence[nn.Parameter]
    lr: float


@dataclass(frozen=True)
class Schedule:
    """Adam's betas, and the factor of the learning rates at step i of n: `factor(i, n)`."""

    factor: Callable[[int, int], float]
    betas: tuple[float, float] = (0.9, 0.999)


def linear(step: int, steps: int) -> float:
    """From 1 to 0 in equal steps."""
    return 1 - step / steps


def descend(
    evaluate: Callable[[bool], Tensor],
    groups: Sequence[Group],
    steps: int,
    schedule: Schedule,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Tensor:
    """`steps` updates by Adam; each image is left with the parameters of its lowest objective.

    Args:
        evaluate: the objectives (B,); with True it also adds the gradient of their sum to the parameters.
        on_step: called with the step and the mean of the objectives before it, for which a GPU has to wait; last with
            the number of steps and the mean after all.
    Returns:
        The objectives before, and after each step: float32 (steps + 1, B).
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        descent = _Descent(evaluate, [g for g in groups if g.parameters], steps, schedule)
        take_step, losses = Replayed(descent.take_step, descent.device), []
        for step in range(steps + 1):
            if step < steps:
                descent.set_rates(step)
            losses.append(take_step() if step < steps else descent.evaluate_and_track(False))
            if on_step:
                on_step(step, losses[-1].mean().item())
        descent.restore_best()
        return torch.stack(losses)


class _Descent:
    """Adam, and each image's best parameters so far, on tensors that stay where they are: a GPU can replay a step."""

    def __init__(self, evaluate: Callable[[bool], Tensor], groups: Sequence[Group], steps: int, schedule: Schedule):
        self.evaluate, self.steps, self.factor = evaluate, steps, schedule.factor
        self.rates = [group.lr for group in groups]
        self.trained = [p.requires_grad_() for group in groups for p in group.parameters]
        self.best = [p.detach().clone() for p in self.trained]
        first = self.trained[0]
        self.device = first.device
        self.lowest = torch.full((len(first),), math.inf, device=first.device)
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(g.parameters), "lr": torch.tensor(g.lr, device=first.device) if first.is_cuda else g.lr}
                for g in groups
            ],
            betas=schedule.betas,
            capturable=first.is_cuda,
        )

    def set_rates(self, step: int) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            lr = rate * self.factor(step, self.steps)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def take_step(self) -> Tensor:
        """The objectives (B,) before the step."""
        self.optimizer.zero_grad(set_to_none=True)
        objectives = self.evaluate_and_track(True)
        self.optimizer.step()
        return objectives

    def evaluate_and_track(self, backward: bool) -> Tensor:
        """The objectives (B,); the parameters are kept where these are the lowest so far."""
        objectives = self.evaluate(backward)
        lower = objectives < self.lowest
        self.lowest.copy_(torch.where(lower, objectives, self.lowest))
        for parameter, best in zip(self.trained, self.best, strict=True):
            chosen = lower.view(-1, *(1 for _ in best.shape[1:]))
            best.copy_(torch.where(chosen, parameter.detach(), best))
        return objectives

    @torch.no_grad()
    def restore_best(self) -> None:
        for parameter, best in zip(self.trained, self.best, strict=True):
            parameter.copy_(best)
