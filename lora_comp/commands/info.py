"""Imports neither torch nor numpy, so that a folder of files is listed in a moment."""

from dataclasses import dataclass

from lora_comp import bitstream
from lora_comp.settings import argument


@dataclass(frozen=True)
class InfoConfig:
    file: str = argument("a file that `lora-comp encode` wrote")


def info(config: InfoConfig) -> None:
    """Print what the header of a file says: size, codec, method and the bytes of each section.

    Examples:
      lora-comp info cat.lcz
      lora-comp info results/cls-scenes-svd_lora/files/scene-val-0-000000-cls-tic-v-q2-svd_lora.lcz
    """
    for name, value in bitstream.info(config.file).items():
        print(f"{name:14} {value:.4f}" if isinstance(value, float) else f"{name:14} {value}")
