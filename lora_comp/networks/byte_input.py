"""Whether a network expects 0 to 255, by its first steps: to divide by 255, or to subtract a mean of bytes.

Only ONNX files of an integer type declare it. In code, in TorchScript and in graphs of floats the first steps show it.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Of preparation: arithmetic with constants, and what moves or copies numbers.
ARITHMETIC = {"div", "mul", "sub", "rsub", "add"}
MOVING = {
    "_to_copy",
    "clone",
    "alias",
    "detach",
    "permute",
    "transpose",
    "view",
    "_unsafe_view",
    "unsqueeze",
    "squeeze",
}
MOVING |= {"expand", "slice", "select", "flip", "index", "index_select", "split", "unbind", "stack", "cat"}
MOVING |= {"constant_pad_nd", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_nearest2d"}
PATIENCE = 50  # operations that do not follow the image, after which there is no more preparation
NARROW = 0.02  # of an image in [0, 1] that is divided by 50 or more
BELOW = -1.5  # of an image in [0, 1] from which a mean of bytes is subtracted


class _Watch(TorchDispatchMode):
    """Follows an image through steps of preparation."""

    def __init__(self, image: Tensor):
        super().__init__()
        self.followed, self.others, self.expects_bytes = [image], 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        step = func.overloadpacket.__name__.removesuffix("_") in ARITHMETIC | MOVING
        if not step or not any(value is one for value in read for one in self.followed):
            self.others += 1
            if self.others > PATIENCE:
                raise RuntimeError("this is enough of the network")
            return result
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.is_floating_point() and made.numel() > 1:
                self.followed.append(made)
                low, high = made.aminmax()
                self.expects_bytes |= bool(high - low < NARROW or high < BELOW)
        return result


@torch.no_grad()
def expects_bytes(answer: Callable[[Tensor], Any], image: Tensor) -> bool:
    """Whether a network that gets an image (1, 3, H, W) in [0, 1] takes it for one of 0 to 255.

    answer: runs the network. That it fails on this image does not matter.
    """
    watch = _Watch(image)
    with suppress(Exception), watch:
        answer(image)
    return watch.expects_bytes
