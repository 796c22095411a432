"""Where the weights in the package lie. What there is, with sizes, checksums and scores: `zoo.registry`."""

from pathlib import Path

ROOT = Path(__file__).parent


def codec_path(name: str, quality: float) -> Path:
    return ROOT / "codecs" / f"{name}-q{quality:g}.safetensors"


def adapter_path(codec: str, quality: float, method: str, task: str) -> Path:
    return ROOT / "adapters" / f"{codec}-q{quality:g}-{method}-{task}.safetensors"


def network_path(name: str) -> Path:
    return ROOT / "networks" / f"{name}.safetensors"


def classifiers() -> list[str]:
    """Names of the classifiers among the networks; the others are the detectors NAME-det and segmenters NAME-seg."""
    names = sorted(path.stem for path in (ROOT / "networks").glob("*.safetensors"))
    return [name for name in names if not name.endswith(("-det", "-seg"))]
