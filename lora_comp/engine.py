"""The settings of test-time fine-tuning and of the machine that it runs on."""

from dataclasses import dataclass

import torch

from lora_comp.errors import LoraCompError
from lora_comp.methods import FitSettings
from lora_comp.settings import setting


@dataclass(frozen=True)
class EngineOptions(FitSettings):
    batch: int = setting(1, "images of one size that are adapted together", low=1)
    threads: int | None = setting(None, "of the processor; null: all", low=1)
    device: str = setting("cpu", "where to compute", pattern=r"(cpu|cuda)(:\d+)?", expected="cpu, cuda or cuda:N")


def choices() -> dict[str, EngineOptions]:
    """Presets. "published": the optimiser, schedule and parameters of the paper."""
    return {"default": EngineOptions(), "published": EngineOptions(steps=40, lr=0.005, recipe="published")}


def start_engine(engine: EngineOptions) -> torch.device:
    """Set the number of threads; the device to work on. Raises LoraCompError for a device that is not there."""
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    try:
        device = torch.device(engine.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LoraCompError(f"engine.device={engine.device} cannot be used: {str(error).splitlines()[0]}") from None
    return device
