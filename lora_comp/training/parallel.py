"""One training over several processes, each with its own GPU where there are any: data parallelism under torchrun.

    torchrun --nproc-per-node 4 -m lora_comp.train what=codec ...

Every process holds the whole model and takes its share of each batch; gradients are averaged, so that a step is the
one that a single process takes with the whole batch. The first process keeps the clock, the checkpoint and the curves.
"""

import os
from collections.abc import Iterable

import torch
from torch import distributed, nn

from lora_comp.errors import LoraCompError


def start(device: str | None) -> torch.device:
    """Join the other processes that torchrun started, if it did; the device to train on.

    device: "cpu" or "cuda"; None for a GPU of one's own where there is one.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise LoraCompError("device=cuda cannot be used: torch sees no GPU here")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise LoraCompError(f"there are {torch.cuda.device_count()} GPUs here: give torchrun --nproc-per-node as many")
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
    """This process's part of a batch of so many. Raises LoraCompError where that is not whole."""
    if count % size():
        raise LoraCompError(f"a batch of {count} cannot be shared by {size()} processes: set batch=")
    each = count // size()
    return slice(rank() * each, (rank() + 1) * each)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Let each process have the mean of the gradients of all."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    for g, mean in zip(gradients, (flat / size()).split([g.numel() for g in gradients]), strict=True):
        g.copy_(mean.view_as(g))


def mean(values: dict[str, float]) -> dict[str, float]:
    """Metrics of a step, each the mean over the processes."""
    if size() == 1:
        return values
    stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=_device())
    distributed.all_reduce(stacked)
    return dict(zip(values, (stacked / size()).tolist(), strict=True))


def of_first(value: float) -> float:
    """What the first process says, in all of them: clocks differ."""
    if size() == 1:
        return value
    said = torch.tensor(value, dtype=torch.float64, device=_device())
    distributed.broadcast(said, 0)
    return said.item()


def alike(module: nn.Module) -> None:
    """Let each process begin with the weights of the first."""
    if size() > 1:
        for tensor in module.state_dict().values():
            said = tensor.contiguous()
            distributed.broadcast(said, 0)
            tensor.copy_(said)


def _device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if distributed.get_backend() == "nccl"
        else torch.device("cpu")
    )


def finish() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
