"""Devices of benchmarks, and timing on them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lora_comp.replay import Replayed

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
GPU_TYPES = [pytest.param("cuda", dtype, marks=ON_GPU) for dtype in ("float32", "bfloat16")]
REPEATS = 20  # per round on a GPU, since launch and synchronisation take as long as a small kernel


def named(group: str, device: str) -> str:
    return group if device == "cpu" else f"{group}, {REPEATS} times on a GPU"


def timed(step: Callable[[], tuple[Tensor, ...]], device: str) -> Callable[[], tuple[Tensor, ...]]:
    """`step` itself on the CPU; on a GPU, `REPEATS` replays of it as a CUDA graph, as in fine-tuning, and a
    synchronisation."""
    if device == "cpu":
        return step
    outputs: list[tuple[Tensor, ...]] = []

    def take() -> Tensor:
        outputs[:] = [step()]
        return outputs[0][0].detach().flatten()[:1]

    replayed = Replayed(take, torch.device(device))

    def repeat() -> tuple[Tensor, ...]:
        for _ in range(REPEATS):
            replayed()
        torch.cuda.synchronize()
        return outputs[0]

    return repeat
