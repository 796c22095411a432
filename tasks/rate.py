"""Rate points."""

from lora_comp.errors import LoraCompError


def rate_lambda(lambdas: tuple[float, ...], quality: float) -> float:
    """The lambda at a quality: those given are at 1, 2, ..., and between them the logarithm is interpolated.

    Raises LoraCompError for a quality outside of them.
    """
    if not 1 <= quality <= len(lambdas):
        raise LoraCompError(f"quality must be 1 to {len(lambdas)}, not {quality:g}")
    below = int(quality)
    if quality == below:
        return lambdas[below - 1]
    return lambdas[below - 1] * (lambdas[below] / lambdas[below - 1]) ** (quality - below)
