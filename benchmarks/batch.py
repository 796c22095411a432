"""`python benchmarks/batch.py [BATCH]...`: images per second of adaptation, by batch size.

tic-v, quality 2, task cls, scenes of 256x256, default steps, one attempt of `refine`. Column steps: `adapted.fit` only;
encode_batch: with writing and decoding of files. On a GPU, if there is one, wall-clock time; else processor time of one
core. The faster of two rounds after a warm-up.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import torch

import lora_comp as lc
from lora_comp.methods import FitSettings, load_method
from lora_comp.objective import Objective, tiles

CUDA = torch.cuda.is_available()


def seconds(work: Callable) -> float:
    def once() -> float:
        now = time.perf_counter if CUDA else time.process_time
        start = now()
        work()
        if CUDA:
            torch.cuda.synchronize()
        return now() - start

    return min([once() for _ in range(3)][1:])


def main(batches: list[int]) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda" if CUDA else "cpu")
    codec, task = lc.load_codec("tic-v", 2).to(device), lc.load_task("cls").to(device)
    method = load_method("svd_lora", codec, task.key)
    data = lc.load_data("scenes", limit=max(batches), size=256)
    images = torch.stack([data[i].image for i in range(len(data))]).to(device)
    print("| batch | steps | encode_batch |\n|---:|---:|---:|")
    for batch in batches:
        x, size = images[:batch], (images.shape[2], images.shape[3])
        whole = tiles(size, codec, lambda *_, x=x: partial(task.distortion, targets=task.targets(x)))
        objective = Objective(x, size, whole, task.weight(codec.quality))

        def fit(x=x, objective=objective) -> None:
            method.prepare(codec, x).fit(objective, FitSettings(lr=task.lr))

        cells = [f"{batch / seconds(work):.2f}" for work in (fit, lambda x=x: lc.encode_batch(x, codec, task, method))]
        print(f"| {batch} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [1, 4] + [16] * CUDA)
