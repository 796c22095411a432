"""What lies between the tensors of a probe, read from autograd's graph of them.

The weights of a network are frozen, so every function of that graph lies on a path from the image. A *cut* is a set of
tensors that all paths from the image to the heads go through: what a network computes after a cut, it computes from
these tensors alone.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

_PRODUCTS = ("Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Linear")  # autograd's names of what has weights


def is_product(function: Any) -> bool:
    """Whether it is a convolution or a matrix product."""
    return function.name().startswith(_PRODUCTS)


def ancestors(functions: Iterable, stops: Collection = ()) -> set:
    """These functions and all that they are computed from; of those in `stops`, nothing further."""
    waiting, seen = list(functions), set()
    while waiting:
        function = waiting.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if function not in stops:
            waiting += [before for before, _ in function.next_functions]
    return seen


def _in_order(functions: Collection) -> list:
    """In order of computation: each after those that it reads, else as autograd numbered them."""
    lacking = {f: len({before for before, _ in f.next_functions if before in functions}) for f in functions}
    readers = defaultdict(set)
    for function in functions:
        for before, _ in function.next_functions:
            readers[before].add(function)
    ready = [(f._sequence_nr(), id(f), f) for f, count in lacking.items() if not count]
    heapq.heapify(ready)
    ordered = []
    while ready:
        function = heapq.heappop(ready)[2]
        ordered.append(function)
        for reader in readers[function]:
            lacking[reader] -= 1
            if not lacking[reader]:
                heapq.heappush(ready, (reader._sequence_nr(), id(reader), reader))
    return ordered


class Cuts:
    """The cuts of a network, in order of computation.

    tensors: those that cuts may consist of. ends: autograd's functions of the heads.
    """

    def __init__(self, tensors: Mapping[str, Tensor], ends: Iterable):
        ends = set(ends)
        self.order = _in_order({f for f in ancestors(ends) if f.next_functions})  # the image itself has none
        self.place = {function: place for place, function in enumerate(self.order)}
        self.names = {(t.grad_fn, t.output_nr): name for name, t in tensors.items()}
        self.last_use = Counter({(end, 0): len(self.order) for end in ends})  # the place of what reads it last
        self.products = [0]  # computed before each place
        for place, function in enumerate(self.order):
            self.products.append(self.products[-1] + is_product(function))
            for value in function.next_functions:
                self.last_use[value] = max(place, self.last_use[value])

    def find(self, widest: int) -> list[list[str]]:
        """Cuts of at most so many tensors."""
        from_image = max((last for (f, _), last in self.last_use.items() if f and f not in self.place), default=0)
        outputs, live, found = defaultdict(list), list[tuple](), list[list[str]]()
        for value in self.last_use:
            outputs[value[0]].append(value)
        for place, function in enumerate(self.order):
            live = [value for value in live + outputs[function] if self.last_use[value] > place]
            if place >= from_image and len(live) <= widest and all(value in self.names for value in live):
                found.append([self.names[value] for value in live])
        return found

    def depth(self, cut: Sequence[str], tensors: Mapping[str, Tensor]) -> float:
        """The share of the network's products that are computed before a cut is complete."""
        return self.products[max(self.place[tensors[name].grad_fn] for name in cut) + 1] / max(self.products[-1], 1)
