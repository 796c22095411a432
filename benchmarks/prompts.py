"""`python benchmarks/prompts.py [CODEC:WIDTHxHEIGHT]...`: what prompts and Adapt-ICMH cost.

Processor time of one thread in milliseconds and over that of the plain codec, the least of several rounds in which
kinds take turns: the codec by itself, with seeded prompts of the default options, with prompts whose U-Net has 8
channels, with prompts as the `plain_...` of `lora_comp.ops` define them, in torch, and with adapters of `icmh`. encode:
from an image to the sections of a file, without a task. g_s: of the same y_hat. step: both passes of the training of
the adapter on one image, in bfloat16 where the processor has products of it.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn.functional import interpolate

import lora_comp as lc
from lora_comp.methods import icmh, transtic
from lora_comp.methods.method import Pretraining
from lora_comp.ops.conv import plain_conv3x3
from lora_comp.ops.swin_block import HALF, plain_prompted_swin_block

ROUNDS = 5
DEFINITIONS = {
    "lora_comp.codecs.swin.prompted_swin_block": plain_prompted_swin_block,
    "lora_comp.methods.transtic.conv3x3": lambda *arguments: plain_conv3x3(*arguments[:5]),
}


def works_of(codec, pretraining: Pretraining | None, x: torch.Tensor, y_hat: torch.Tensor) -> list[Callable]:
    def step():
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            out = pretraining.module(x)
            loss = (out["x_hat"].float() - x).square().mean() - sum(p.log().mean() for p in out["likelihoods"].values())
        torch.autograd.grad(loss, list(pretraining.trained.values()))

    if pretraining is None:
        made = codec
    else:
        make = icmh.make if isinstance(pretraining, icmh.Pretraining) else transtic.make
        made = make(Path("seeded"), pretraining.tensors(), pretraining.card, codec).of(codec)
    return [
        lambda: made.analyze(x),
        lambda: made.coder().compress(made.latents(x)),
        lambda: made.synthesize(y_hat),
        *([step] if pretraining else []),
    ]


def timed(work: Callable) -> float:
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def rows(name: str, width: int, height: int) -> None:
    codec = lc.load_codec(name, 2, *([] if name == "tic-v" else [None]))
    noise = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    x = interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    y_hat = codec.rate(codec.latents(x)).y_hat
    prompts, narrow = (transtic.Pretraining(codec, transtic.TransTICOptions(width=width)) for width in (None, 8))
    kinds = {"plain": None, "prompts": prompts, "prompts, width 8": narrow, "prompts, in torch": prompts}
    kinds["icmh"] = icmh.Pretraining(codec, icmh.IcmhOptions())
    for parameter in (p for one in kinds.values() if one for p in one.trained.values()):
        parameter.requires_grad_()
    works = {kind: works_of(codec, pretraining, x, y_hat) for kind, pretraining in kinds.items()}
    least = {kind: [float("inf")] * len(works[kind]) for kind in kinds}
    for _ in range(ROUNDS):
        for kind in kinds:
            with ExitStack() as stack:
                for place, definition in DEFINITIONS.items() if kind.endswith("torch") else ():
                    stack.enter_context(patch(place, definition))
                least[kind] = [min(a, timed(work)) for a, work in zip(least[kind], works[kind], strict=True)]
    for kind, pretraining in kinds.items():
        count = "" if pretraining is None else sum(t.numel() for t in pretraining.tensors().values())
        cells = [f"{t:.1f} ({t / plain:.2f})" for t, plain in zip(least[kind], least["plain"], strict=False)]
        cells += [f"{t:.0f}" for t in least[kind][3:]]
        print(f"| `{name}`, {width}x{height}, {kind} | {count} | {' | '.join(cells)} |", flush=True)


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    print("| | parameters | g_a | encode | g_s | step |\n|---|---:|---:|---:|---:|---:|")
    with torch.no_grad():
        for word in words:
            name, _, size = word.partition(":")
            width, height = map(int, size.split("x"))
            rows(name, width, height)


if __name__ == "__main__":
    main(sys.argv[1:] or ["tic-v:256x256", "tic-v:768x512", "tic:256x256"])
