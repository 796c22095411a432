"""STF with six slices, small enough for tests; not a recipe."""

from lora_comp.codecs import Spec
from lora_comp.codecs.stf import STF

NAME = "stf-small"
SPEC = Spec(
    lambda quality: STF(
        embed=12,
        hyper=(32, 24, 24, 16, 16),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 2, 4),
        slices=6,
        seen=3,
        hidden=(24, 16),
    ),
    qualities=(1, 2, 3, 4, 5, 6),
)
