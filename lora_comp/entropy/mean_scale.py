"""The mean-scale hyperprior without a context: all of y in one step (Minnen et al., "Joint Autoregressive and
Hierarchical Priors for Learned Image Compression", NeurIPS 2018, without the autoregressive part).
"""

from torch import Tensor

from lora_comp.entropy.prior import Part, Prior


class MeanScale(Prior):
    """The hyper synthesis is scales and means."""

    steps = 1

    def part(self, step: int, y: Tensor) -> Part:
        return ...

    def predict(self, step: int, hyper: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = hyper.chunk(2, 1)
        return scales, means
