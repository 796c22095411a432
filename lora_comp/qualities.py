"""At which qualities a codec can code with a method: those of a codec of variable rate, or those that an adapter moves
a frozen codec to (`methods.calice`).
"""

from typing import Any

from lora_comp.codecs import CODECS, at_quality


def ends(codec: Any, method: Any = None) -> tuple[float, float] | None:
    """The lowest and the highest quality, every sixteenth between which is possible too; None if there is but one."""
    own = getattr(method, "qualities", None)
    if own is not None or codec.rate_point is not None:
        return own
    first, *_, last = CODECS[codec.name].qualities
    return first, last


def quality_of(codec: Any, method: Any = None) -> float:
    """The quality that a codec codes at with a method, whose objective counts."""
    return codec.quality if method is None or method.target is None else method.target


def mover(method: Any) -> Any:
    """What of a method moves a frozen codec to other qualities, without a fit to the image; None if nothing does."""
    if getattr(method, "qualities", None) is None:
        return None
    base = getattr(method, "base", None)
    return getattr(method, "method", method) if base is None else base  # without refinement of latents


def moved(codec: Any, method: Any, quality: float) -> tuple[Any, Any]:
    """The codec and the method at another quality, to the nearest sixteenth.

    Raises LoraCompError for a quality that they have not.
    """
    if getattr(method, "qualities", None) is None:
        return at_quality(codec, quality), method
    return codec, method.at(quality)
