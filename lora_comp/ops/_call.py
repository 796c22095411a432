"""What every op does before it computes, and how it calls the compiled part."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lora_comp.shapes import Shapes

KERNEL_TYPES = (torch.float32, torch.bfloat16)


def check(shapes: Shapes, *tensors: Tensor | None, **known: int) -> Mapping[str, Any]:
    """The sizes of `shapes.check`, for tensors that lie on one device.

    Raises:
        ValueError: a shape is not that of the table, or a tensor lies elsewhere than the first.
    """
    sizes = (shapes.compare if torch.compiler.is_compiling() else shapes.check)(*tensors, **known)
    if len({t.get_device() for t in tensors if t is not None}) > 1:
        places = [f"{name} on {t.device}" for name, t in zip(shapes.arguments, tensors, strict=False) if t is not None]
        raise ValueError(f"all arguments must be on one device, not {', '.join(places)}")
    return sizes


def run(kernel: Callable, x: Tensor, /, **arguments: Any) -> None:
    """A kernel of `_C` on x's device; on a GPU on its current stream."""
    if not x.is_cuda:
        kernel(threads=torch.get_num_threads(), stream=None, **arguments)
        return
    with torch.cuda.device(x.device):
        kernel(threads=1, stream=torch.cuda.current_stream().cuda_stream, **arguments)


def empty_unless(wanted: bool, like: Tensor) -> Tensor:
    """What an operator returns for a gradient: contiguous and uninitialised, or without elements."""
    return like.new_empty(like.shape if wanted else 0)
