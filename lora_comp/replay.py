"""Steps that a GPU replays: each is some thousand kernels, and to launch one takes longer than most of them run."""

from collections.abc import Callable

import torch
from torch import Tensor


class Replayed:
    """A function without arguments that reads and writes the same tensors each time and returns one.

    On a GPU it is a CUDA graph from its second call on: the first runs as it is, in which libraries set themselves up
    and an optimiser makes its state. What cannot be recorded, such as a network that reads a number back, runs as it
    is each time.
    """

    def __init__(self, function: Callable[[], Tensor], device: torch.device):
        self.function, self.device = function, device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.first, self.recordable = True, device.type == "cuda"
        self.result: Tensor

    def __call__(self) -> Tensor:
        if not self.recordable:
            return self.function()
        with torch.cuda.device(self.device):
            if self.first:
                self.first = False
                return self._aside()
            if self.graph is None:
                self.graph = self._recorded()
            if self.graph is None:
                return self.function()
            self.graph.replay()
        return self.result.clone()

    def _aside(self) -> Tensor:
        """A call on a stream of its own, as recording needs of what comes before it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.function()
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _recorded(self) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.result = self.function()
        except RuntimeError:  # CUDA's or torch's, of an operation that is not allowed while recording
            self.recordable = False
            return None
        return graph
