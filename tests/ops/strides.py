"""Memory layouts for tests of the operators."""

from torch import Tensor


def strided(tensor: Tensor) -> Tensor:
    """Equal to a tensor of two dimensions or more, with the last two in exchanged order in memory."""
    return tensor.detach().mT.contiguous().mT
