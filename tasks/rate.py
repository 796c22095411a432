"""Rate points."""

from lora_comp.errors import LoraCompError


def rate_lambda(lambdas: tuple[float, ...], quality: int) -> float:
    """The lambda of a rate point, counted from 1; LoraCompError for any other."""
    if quality not in range(1, len(lambdas) + 1):
        raise LoraCompError(f"quality must be 1 to {len(lambdas)}, not {quality}")
    return lambdas[quality - 1]
