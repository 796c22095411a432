"""Data parallelism under torchrun, one process per GPU:

    torchrun --nproc-per-node 4 -m lora_comp.train what=codec ...

Each process holds the whole model and processes its share of a batch. Gradients are averaged, so a step equals that of
one process with the whole batch. The first process measures time and writes checkpoints and curves.
"""

import os
from collections.abc import Iterable

import torch
from torch import distributed, nn

from lora_comp.errors import LoraCompError


def start(device: str | None) -> torch.device:
    """Join the process group of torchrun, if there is one, and return the device to train on.

    device: "cpu" or "cuda"; None for a GPU if there is one.
    Raises LoraCompError if there is no GPU for this process.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise LoraCompError("device=cuda needs a GPU, and torch finds none; use device=cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise LoraCompError(f"torch finds {torch.cuda.device_count()} GPUs: set torchrun's --nproc-per-node to that")
    if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    if kind == "cuda":
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device("cpu")


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(count: int) -> slice:
    """This process's share of a batch of `count`. Raises LoraCompError if the batch cannot be divided evenly."""
    if count % size():
        raise LoraCompError(f"a batch of {count} cannot be divided among {size()} processes: set batch= to a multiple")
    each = count // size()
    return slice(rank() * each, (rank() + 1) * each)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    for g, mean in zip(gradients, (flat / size()).split([g.numel() for g in gradients]), strict=True):
        g.copy_(mean.view_as(g))


def mean(values: dict[str, float]) -> dict[str, float]:
    """Means of metrics over all processes."""
    if size() == 1:
        return values
    stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=_device())
    distributed.all_reduce(stacked)
    return dict(zip(values, (stacked / size()).tolist(), strict=True))


def broadcast_value(value: float) -> float:
    """The first process's value, in all processes."""
    if size() == 1:
        return value
    sent = torch.tensor(value, dtype=torch.float64, device=_device())
    distributed.broadcast(sent, 0)
    return sent.item()


def broadcast_weights(module: nn.Module) -> None:
    """Copy the first process's weights to all processes."""
    if size() > 1:
        for tensor in module.state_dict().values():
            sent = tensor.contiguous()
            distributed.broadcast(sent, 0)
            tensor.copy_(sent)


def _device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if distributed.get_backend() == "nccl"
        else torch.device("cpu")
    )


def finish() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
