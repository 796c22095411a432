"""The configuration of a command: Hydra groups under conf/, changed by `group=choice` and `key=value` words."""
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_comp.errors import LoraCompError


def load_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration `name` with the given words applied. Raises LoraCompError for a word that does not fit."""
    try:
        with initialize_config_dir(str(Path(__file__).parent / "conf"), version_base="1.3"):
            config = compose(name, list(overrides))
        OmegaConf.resolve(config)
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise LoraCompError(" ".join(str(error).split())) from None


def start_engine(engine: DictConfig) -> torch.device:
    """Set the number of threads; the device to work on. Raises LoraCompError for a device that is not there."""
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    try:
        device = torch.device(engine.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LoraCompError(f"engine.device={engine.device} cannot be used: {str(error).splitlines()[0]}") from None
    return device
