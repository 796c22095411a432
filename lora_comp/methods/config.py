"""The settings of the methods that change weights by low-rank updates."""

from dataclasses import dataclass

from lora_comp.settings import setting


@dataclass(frozen=True)
class LowRankConfig:
    name: str
    adapter: str | None = setting(
        "auto",
        "auto: the one pre-trained for the task where it ships; a file; the key of another task, as cls-scenes; "
        "null: made from the seed",
        path=True,
    )
    rank: int = setting(4, "rank of an adapter made from the seed", low=1, high=255)
    alpha: int = setting(8, "scale of an adapter made from the seed: its updates count alpha / rank", low=1, high=255)
    mlp: bool = setting(False, "adapt the layers of the MLPs too, in an adapter made from the seed")
    seed: int = setting(0, "of an adapter made from it", low=0, high=127)
    exponent: int = setting(5, "transmitted updates are fitted in steps of 2^-exponent", low=0, high=24)
