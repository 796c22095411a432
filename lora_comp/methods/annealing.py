"""Refinement of an image's latents by annealed stochastic rounding, in the encoder only.

Stochastic Gumbel annealing (Yang, Bamler and Mandt, "Improving Inference for Neural Image Compression", NeurIPS 2020):
y and z are optimised by gradient descent while each value is rounded down or up at random, by a relaxed sample that a
falling temperature makes ever harder. A straight-through gradient knows one side of each rounding only, this tries
both. The file is an ordinary one.

Not to be confused with `methods.refine`, which searches for the transmitted integers of an adapter.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_comp.errors import LoraCompError
from lora_comp.finetune import Group, OnStep, Schedule, descend, linear
from lora_comp.methods.method import Adapted, FitSettings, Method, Unfitted
from lora_comp.objective import Objective

REFINED = "refined"  # the plain codec with refined latents, beside "none" in tables; its files are those of "none"
LR = 0.02  # of y and z; these four were chosen in docs/refinement.md
SCHEDULE = Schedule(linear)
HOT, COLD = 0.5, 0.05
EPSILON = 1e-4  # keeps logarithms finite


class Annealing:
    """Rounding of a codec's latents (`entropy.models.Rounding`) at a falling temperature t.

    A value v that lies r above its floor becomes floor(v) + w, where w in (0, 1) is a sample of the relaxed Bernoulli
    distribution with logit (atanh(r) - atanh(1 - r)) / t and temperature t, as in the paper. All images of a batch
    share their random numbers, so that each is refined as if alone.
    """

    def __init__(self, device: torch.device):
        self.temperature = torch.tensor(HOT, device=device)

    def cool(self, step: int, steps: int) -> None:
        """The temperature of step i of n, from `HOT` to `COLD`."""
        self.temperature.fill_(HOT * (COLD / HOT) ** (step / steps))

    def __call__(self, v: Tensor) -> Tensor:
        floor = v.detach().floor()
        r = (v - floor).clamp(EPSILON, 1 - EPSILON)
        upward = (r * (1 + r) / ((1 - r) * (2 - r))).log() / 2  # atanh(r) - atanh(1 - r)
        noise = torch.rand(v.shape[1:], device=v.device).clamp(EPSILON, 1 - EPSILON).logit()
        return floor + torch.sigmoid((upward / self.temperature + noise) / self.temperature)


class AdaptedAnnealed:
    """A prepared codec whose latents are refined after its own fit.

    refined: the latents as parameters (B, ...), once they are refined.
    """

    def __init__(self, adapted: Adapted, steps: int, first: int):
        self.adapted, self.steps, self.first = adapted, steps, first
        self.codec, self.bits, self.payloads = adapted.codec, adapted.bits, adapted.payloads
        self.refined: Mapping[str, nn.Parameter] | None = None

    def latents(self, x: Tensor) -> Mapping[str, Tensor]:
        return self.adapted.latents(x) if self.refined is None else self.refined

    def fit(self, objective: Objective, settings: FitSettings, on_step: OnStep | None = None) -> Tensor:
        """Fit the adapted codec, then refine its latents.

        An image keeps the latents that it had before if their objective is no higher, both rounded as in a file.
        Returns the objectives of the refinement: float32 (steps + 1, B), before its last those of random samples.
        """
        self.adapted.fit(objective, settings, on_step)
        rounding = Annealing(objective.x.device)

        def evaluate(backward: bool) -> Tensor:
            return objective.evaluate(self, True, rounding) if backward else objective.evaluate(self)

        def count(step: int, loss: float) -> None:
            if on_step:
                on_step(self.first + step, loss)

        groups, told = [Group(self.start(objective.x), LR)], count if on_step else None
        return descend(evaluate, groups, self.steps, SCHEDULE, settings.seed, told, rounding.cool)

    def start(self, x: Tensor) -> list[nn.Parameter]:
        """Freeze the adapted codec; its latents become the parameters to refine."""
        self.codec.requires_grad_(False)
        with torch.no_grad():
            self.refined = {name: nn.Parameter(value.clone()) for name, value in self.adapted.latents(x).items()}
        return list(self.refined.values())


class Annealed:
    """A method, or None for the plain codec, with `steps` steps of refinement after its own fit."""

    def __init__(self, method: Method | None, steps: int):
        self.method, self.steps = method, steps
        self.name = REFINED if method is None else method.name
        self.identity = None if method is None else method.identity
        self.guarded = method is None or method.guarded
        self.target = None if method is None else method.target
        self.qualities = getattr(method, "qualities", None)
        self.base = getattr(method, "base", None)
        self.settings = {**({} if method is None else method.settings), "refine": steps}

    def at(self, quality: float) -> "Annealed":
        """See `methods.Method`."""
        return Annealed(self.method.at(quality), self.steps)  # type: ignore[union-attr]  # where there are qualities

    def prepare(self, codec: Any, x: Tensor, settings: FitSettings) -> AdaptedAnnealed:
        """See `methods.Method.prepare`."""
        adapted = Unfitted(codec, x) if self.method is None else self.method.prepare(codec, x, settings)
        return AdaptedAnnealed(adapted, self.steps, steps_of(self.method, settings.steps))

    def restore(self, codec: Any, payload: bytes | None) -> Any:
        """See `methods.Method.restore`."""
        return codec if self.method is None else self.method.restore(codec, payload)


def annealed(method: Method | None, steps: int) -> Method | None:
    """The method with `steps` steps of refinement; itself if there are none.

    Raises:
        LoraCompError: a negative number.
    """
    if steps < 0:
        raise LoraCompError(f"refine must be a number of steps, 0 or more, not {steps}")
    return Annealed(method, steps) if steps else method


def steps_of(method: Method | None, steps: int) -> int:
    """The steps that a method takes in all if its own fit takes `steps`."""
    if isinstance(method, Annealed):
        return method.steps + steps_of(method.method, steps)
    return 0 if method is None else steps
