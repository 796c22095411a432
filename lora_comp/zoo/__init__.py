"""Where the weights in the package lie. What there is, with sizes, checksums and scores: `zoo.registry`."""

from pathlib import Path

ROOT = Path(__file__).parent


def codec_path(name: str, rate_point: float | None) -> Path:
    """Weights of a codec for one rate point; None for those of all rates."""
    return ROOT / "codecs" / f"{_at(name, rate_point)}.safetensors"


def adapter_path(codec: str, rate_point: float | None, method: str, task: str) -> Path:
    return ROOT / "adapters" / f"{_at(codec, rate_point)}-{method}-{task}.safetensors"


def _at(codec: str, rate_point: float | None) -> str:
    return codec if rate_point is None else f"{codec}-q{rate_point:g}"


def network_path(name: str) -> Path:
    return ROOT / "networks" / f"{name}.safetensors"


def classifiers() -> list[str]:
    """Names of the classifiers among the networks; the others are the detectors NAME-det and segmenters NAME-seg."""
    names = sorted(path.stem for path in (ROOT / "networks").glob("*.safetensors"))
    return [name for name in names if not name.endswith(("-det", "-seg"))]
