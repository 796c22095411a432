"""The optimiser of a codec's training on a processor: SOAP (Vyas et al., "SOAP: Improving and Stabilizing Shampoo using
Adam", ICLR 2025) by pytorch_optimizer.

Adam in the eigenbases of the covariances of each layer's gradient: of a filter one along each of its four dimensions.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lora_comp.errors import LoraCompError

EVERY = 15  # steps between eigenbases
LARGEST = 800  # side of a covariance; along a larger one a weight stays in its own basis


def library() -> Any:
    """pytorch_optimizer's SOAP. Raises LoraCompError if it is not installed."""
    try:
        from pytorch_optimizer import SOAP
    except ImportError:
        raise LoraCompError("training a codec needs pytorch_optimizer: pip install 'lora_comp[train]'") from None
    return SOAP


def soap(groups: Sequence[Sequence[nn.Parameter]], lr: float) -> Any:
    """SOAP on groups of parameters, as a torch.optim.Optimizer that takes no step where its `found_inf` is 1.

    The first step only measures covariances. Raises LoraCompError if pytorch_optimizer is not installed.
    """

    class Skipping(library()):  # type: ignore[misc]
        found_inf = 0.0

        def step(self, closure: Any = None) -> Any:
            return None if self.found_inf else super().step(closure)

    return Skipping(
        [{"params": parameters} for parameters in groups],
        lr=lr,
        betas=(0.9, 0.99),
        shampoo_beta=0.95,
        weight_decay=0.0,
        precondition_frequency=EVERY,
        max_precondition_dim=LARGEST,
    )
