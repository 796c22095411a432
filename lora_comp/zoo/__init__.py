"""Where the weights in the package lie. What there is, with sizes, checksums and scores: `zoo.registry`."""

from pathlib import Path

ROOT = Path(__file__).parent


def codec_path(name: str, quality: float) -> Path:
    return ROOT / "codecs" / f"{name}-q{quality:g}.safetensors"


def adapter_path(codec: str, quality: float, method: str, task: str) -> Path:
    return ROOT / "adapters" / f"{codec}-q{quality:g}-{method}-{task}.safetensors"
