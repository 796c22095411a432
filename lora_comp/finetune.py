"""Gradient descent on groups of parameters, independent of methods, codecs and tasks.

Images of one size are fitted together but independently: the first dimension of each parameter is the batch, an image's
objective depends on its own parameters only, and Adam is elementwise. So each image is fitted as if alone, up to the
order of float32 sums.
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
    """Parameters (B, ...) that share a learning rate; lr is that of the first step."""

    parameters: Sequence[nn.Parameter]
    lr: float


@dataclass(frozen=True)
class Schedule:
    """Adam's betas, and `factor(i, n)`, the factor of the learning rates at step i of n."""

    factor: Callable[[int, int], float]
    betas: tuple[float, float] = (0.9, 0.999)


def linear(step: int, steps: int) -> float:
    """Linear decay from 1 to 0."""
    return 1 - step / steps


def descend(
    evaluate: Callable[[bool], Tensor],
    groups: Sequence[Group],
    steps: int,
    schedule: Schedule,
    seed: int = 0,
    on_step: OnStep | None = None,
    sample: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Take `steps` steps of Adam, then restore each image's best parameters.

    Args:
        evaluate: returns the objectives (B,); called with True, it also accumulates the gradient of their sum.
        on_step: called before each step, and after the last, with the number of steps taken and the mean objective,
            which synchronises a GPU.
        sample: prepares step i of n, whose objectives are those of a random sample: only the parameters before the
            first step and after the last are then compared, by evaluate(False).
    Returns:
        The objectives before the first and after each step: float32 (steps + 1, B).
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        descent = _Descent(evaluate, [g for g in groups if g.parameters], steps, schedule, tracked=sample is None)
        take_step, losses = Replayed(descent.take_step, descent.device), []
        if sample:
            descent.evaluate_and_track(False)
        for step in range(steps + 1):
            if step < steps:
                descent.set_rates(step)
                if sample:
                    sample(step, steps)
            losses.append(take_step() if step < steps else descent.evaluate_and_track(False))
            if on_step:
                on_step(step, losses[-1].mean().item())
        descent.restore_best()
        return torch.stack(losses)


class _Descent:
    """Adam with tracking of each image's best parameters, all in place, so that a CUDA graph can replay a step."""

    def __init__(
        self,
        evaluate: Callable[[bool], Tensor],
        groups: Sequence[Group],
        steps: int,
        schedule: Schedule,
        tracked: bool = True,
    ):
        self.evaluate, self.steps, self.factor, self.tracked = evaluate, steps, schedule.factor, tracked
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
        objectives = self.evaluate_and_track(True) if self.tracked else self.evaluate(True)
        self.optimizer.step()
        return objectives

    def evaluate_and_track(self, backward: bool) -> Tensor:
        """Evaluate the objectives (B,) and track the best parameters."""
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
