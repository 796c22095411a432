"""The settings of test-time fine-tuning and of the machine that it runs on."""

from dataclasses import dataclass

import torch

from lora_comp.errors import LoraCompError
from lora_comp.settings import setting


@dataclass(frozen=True)
class EngineConfig:
    steps: int = setting(10, "steps of test-time fine-tuning", low=0)
    lr: float | None = setting(None, "learning rate; null: the task's own", above=0)
    recipe: str = setting(
        "latents",
        "what the encoder trains: the latents of the image, its adapter, or the adapter as published",
        choices=("latents", "adapter", "published"),
    )
    tile: int = setting(
        1024, "longest side, in pixels, of what the task sees at once of a large image", low=128, step=128
    )
    seed: int = setting(0, "of the random numbers", low=0, high=2**63 - 1)
    batch: int = setting(1, "images of one size that are adapted together", low=1)
    threads: int | None = setting(None, "of the processor; null: all", low=1)
    device: str = setting("cpu", "where to compute", pattern=r"(cpu|cuda)(:\d+)?", expected="cpu, cuda or cuda:N")


def choices() -> dict[str, EngineConfig]:
    """Presets. "published": the optimiser, schedule and parameters of the paper."""
    return {"default": EngineConfig(), "published": EngineConfig(steps=40, lr=0.005, recipe="published")}


def start_engine(engine: EngineConfig) -> torch.device:
    """Set the number of threads; the device to work on. Raises LoraCompError for a device that is not there."""
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    try:
        device = torch.device(engine.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LoraCompError(f"engine.device={engine.device} cannot be used: {str(error).splitlines()[0]}") from None
    return device
