"""CUDA graphs: a step has about a thousand kernels, most of which run for less time than their launch takes."""

from collections.abc import Callable

import torch
from torch import Tensor


class Replayed:
    """Wraps a function without arguments that reads and writes the same tensors at each call and returns one tensor.

    On a GPU the first call runs eagerly, so that libraries and optimisers initialise; the second captures a CUDA graph,
    which later calls replay. A function that cannot be captured, such as one that synchronises, always runs eagerly.
    """

    def __init__(self, function: Callable[[], Tensor], device: torch.device):
        self.function, self.device = function, device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.first, self.capturable = True, device.type == "cuda"
        self.result: Tensor

    def __call__(self) -> Tensor:
        if not self.capturable:
            return self.function()
        with torch.cuda.device(self.device):
            if self.first:
                self.first = False
                return self._warm_up()
            if self.graph is None:
                self.graph = self._capture()
            if self.graph is None:
                return self.function()
            self.graph.replay()
        return self.result.clone()

    def _warm_up(self) -> Tensor:
        """Call the function on a side stream, as capturing requires of calls before it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.function()
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.result = self.function()
        except RuntimeError:  # an operation that CUDA graphs do not support
            self.capturable = False
            generator = torch.cuda.default_generators[self.device.index or 0]
            generator.graphsafe_set_state(generator.clone_state())  # the failed capture still holds the present state
            return None
        return graph
