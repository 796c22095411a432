from dataclasses import dataclass
from pathlib import Path

from lora_comp.import_checkpoint import import_checkpoint
from lora_comp.reference import SYSTEMS
from lora_comp.settings import REQUIRED, argument, setting


@dataclass(frozen=True)
class ImportConfig:
    checkpoint: str = argument("what torch saved: tensors by name, or these under 'state_dict'")
    system: str = setting(REQUIRED, f"whose checkpoint it is: {', '.join(SYSTEMS)}")
    quality: int = setting(1, "rate point that the codec goes by", low=1, high=6)
    target: float | None = setting(
        None,
        "of alice: the quality that the adapter was trained for, 1 for lambda 0.0018 to 6 for 0.0483",
        low=1,
        high=6,
    )
    into: str = setting(".", "folder for the weights", path=True)
    overwrite: bool = setting(False, "replace weights that exist")


def import_(config: ImportConfig) -> None:
    """Convert a published checkpoint to weights of a codec and, where it has one, of an adapter.

    Examples:
      lora-comp import base_codec_2.pth.tar --system tic quality=2
      lora-comp import stf_0067_best.pth.tar --system stf quality=3
      lora-comp import cls.pth.tar --system tic_svdlora into=weights
      lora-comp import 013_checkpoint.pth.tar --system alice quality=6 target=4
      lora-comp import checkpoint.pth.tar --system calice quality=6
    """
    path, into = Path(config.checkpoint), Path(config.into)
    for line in import_checkpoint(path, config.system, config.quality, into, config.overwrite, config.target):
        print(line)
