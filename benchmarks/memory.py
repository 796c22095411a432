"""`python benchmarks/memory.py`: what a step of fine-tuning takes above what is there before it, in MB (Linux).

tic (N=128), 256x256, features of a ResNet-50, random weights, one thread; each kind in a process of its own: the
published formulation (published.py), and the engine's step with the encoder's adapter trained, and with the latents.
"""

import multiprocessing
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from published import formulation

import lora_comp as lc
from lora_comp.methods import FitSettings
from lora_comp.objective import Objective, tiles

KINDS = "published", "adapter", "latents"


def resident(name: str) -> float:
    """MB of this process: "VmRSS", or "VmHWM", the most since it was reset."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def step_memory(kind: str) -> float:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codec, x = lc.load_codec("tic", 1, weights=None), torch.rand(1, 3, 256, 256)
    task = lc.load_task("cls", network="torchvision/resnet50", weights=None)
    method = lc.load_method("svd_lora", codec, adapter=None)
    assert method is not None
    adapted = method.prepare(codec, x, FitSettings(recipe=kind))
    objective = Objective(
        x, (256, 256), tiles((256, 256), codec, lambda *_: partial(task.distortion, targets=task.targets(x))), 1.0
    )
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with formulation() if kind == "published" else nullcontext():
        adapted.fit(objective, FitSettings(steps=2, lr=1e-3))
    return resident("VmHWM") - before


if __name__ == "__main__":
    for kind in KINDS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(f"{kind:10} {pool.apply(step_memory, (kind,)):6.0f} MB", flush=True)
