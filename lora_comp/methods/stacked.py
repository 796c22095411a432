"""A method that is fitted to each image on top of another one, the base, which is not: test-time fine-tuning of a codec
that an adapter has already moved to another rate or task.

The base adapts the frozen codec, and the method adapts what it makes as it would the codec itself. A file names both
and their adapters (`bitstream.Header.base`).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lora_comp.bitstream import joined, split
from lora_comp.methods.method import Adapted, FitSettings, Method


class AdaptedStack:
    """See `methods.Adapted`. The rate of the base's payload, a constant, is left out of `bits`."""

    def __init__(self, under: Adapted, over: Adapted):
        self.under, self.over = under, over
        self.codec, self.latents, self.fit, self.bits = over.codec, over.latents, over.fit, over.bits

    def payloads(self) -> list[bytes | None]:
        pairs = zip(self.under.payloads(), self.over.payloads(), strict=True)
        return [joined(base, own or b"") for base, own in pairs]


class Stacked:
    """`method` on top of `base`, at whose rate and for whose objective it is fitted.

    The file of the base alone is written where that has the lower objective.
    """

    guarded = True

    def __init__(self, method: Method, base: Method):
        self.method, self.base = method, base
        self.name, self.identity, self.target = method.name, method.identity, base.target
        self.qualities = getattr(base, "qualities", None)
        named = [base.name, base.identity and base.identity.hex(), dict(base.settings)]
        self.settings: Mapping[str, Any] = {**method.settings, "base": named}

    def at(self, quality: float) -> "Stacked":
        """See `methods.Method`."""
        return Stacked(self.method, self.base.at(quality))  # type: ignore[attr-defined]  # where there are qualities

    def prepare(self, codec: Any, x: Tensor, settings: FitSettings) -> AdaptedStack:
        """See `methods.Method.prepare`."""
        under = self.base.prepare(codec, x, settings)
        return AdaptedStack(under, self.method.prepare(under.codec, x, settings))

    def restore(self, codec: Any, payload: bytes | None) -> Any:
        """See `methods.Method.restore`."""
        base, own = split(payload)
        return self.method.restore(self.base.restore(codec, base), own)
