"""Where a benchmark runs, and how its time is taken there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lora_comp.replay import Replayed

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
GPU_TYPES = [pytest.param("cuda", dtype, marks=ON_GPU) for dtype in ("float32", "bfloat16")]
REPEATS = 20  # on a GPU: to launch a graph and to wait for its end take as long as a small kernel


def named(group: str, device: str) -> str:
    return group if device == "cpu" else f"{group}, {REPEATS} times on a GPU"


def timed(step: Callable[[], tuple[Tensor, ...]], device: str) -> Callable[[], tuple[Tensor, ...]]:
    """`step` on the processor; on a GPU `REPEATS` replays of it as a CUDA graph, which is how the engine takes a step,
    and the wait for their end."""
    if device == "cpu":
        return step
    found: list[tuple[Tensor, ...]] = []

    def take() -> Tensor:
        found[:] = [step()]
        return found[0][0].detach().flatten()[:1]

    replayed = Replayed(take, torch.device(device))

    def repeat() -> tuple[Tensor, ...]:
        for _ in range(REPEATS):
            replayed()
        torch.cuda.synchronize()
        return found[0]

    return repeat
