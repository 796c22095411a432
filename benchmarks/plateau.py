"""Savings and cost of early stopping, which fine-tuning does not use.

`python benchmarks/plateau.py FOLDER[:NETWORK[:SIDE]]... [--limit N] [--adapter seeded|shipped]` fits images of each
folder (or of `scenes`, generated) with `tic-v` at quality 2. It prints, per folder, for how many images the last
objective was the lowest, and the means of the step at which early stopping would have stopped and of the excess of the
objective there over the lowest. Early stopping: the lowest objective has fallen by less than 0.1 % in `patience` steps.
"""

import argparse
from itertools import accumulate

import torch
from singular_values import images_of

import lora_comp as lc
from lora_comp.methods import load_method

WAYS = [("latents", 10), ("latents", 20), ("latents", 40), ("adapter", 40), ("published", 40)]
PATIENCES = 5, 10
LESS = 1e-3


def stop(lowest: list[float], patience: int) -> int:
    """The step at which early stopping stops; lowest: running minima of the objective."""
    flat = (i for i in range(patience, len(lowest)) if lowest[i] > lowest[i - patience] * (1 - LESS))
    return next(flat, len(lowest) - 1)


def objectives_of(image, codec, task, method, recipe: str, steps: int) -> list[float]:
    losses: list[float] = []
    lc.encode(image, codec, task, method, recipe=recipe, steps=steps, on_step=lambda _, loss: losses.append(loss))
    return losses


def row(folder: str, recipe: str, steps: int, runs: list[list[float]]) -> str:
    lowest = [list(accumulate(run, min)) for run in runs]
    last = sum(run[-1] == low[-1] for run, low in zip(runs, lowest, strict=True))
    cells = [folder, recipe, str(steps), f"{sum(low[-1] for low in lowest) / len(runs):.4f}", f"{last} of {len(runs)}"]
    for patience in PATIENCES:
        stops = [stop(low, patience) for low in lowest]
        lost = sum(low[at] / low[-1] - 1 for low, at in zip(lowest, stops, strict=True)) / len(runs)
        cells += [f"{sum(stops) / len(runs):.1f}", f"{100 * lost:.1f} %"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER[:NETWORK[:SIDE]]")
    parser.add_argument("--limit", type=int, default=3, help="images of each folder, evenly spaced")
    parser.add_argument("--adapter", choices=("seeded", "shipped"), default="seeded")
    words = parser.parse_args()
    torch.set_num_threads(1)
    codec = lc.load_codec("tic-v", 2)
    print("| images | trained | steps | lowest | at the last step |", *(f"stops, {p} | loses |" for p in PATIENCES))
    print("|---|---|" + "---:|" * (3 + 2 * len(PATIENCES)))
    for word in words.folders:
        folder, network, named = images_of(word, words.limit)
        task = lc.load_task("cls", network=network)
        method = load_method("svd_lora", codec, task.key, adapter=None if words.adapter == "seeded" else "auto")
        images = [image for _, image in named]
        for recipe, steps in WAYS:
            runs = [objectives_of(image, codec, task, method, recipe, steps) for image in images]
            print(row(folder, recipe, steps, runs), flush=True)


if __name__ == "__main__":
    main()
