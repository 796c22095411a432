"""What a stop on a plateau would save, and cost: why `ttft.fit` has none.

`python benchmarks/plateau.py FOLDER[:NETWORK[:SIDE]]... [--limit N] [--adapter seeded|shipped]` fits pictures of each
folder (or of `scenes`, generated) with `tic-s` at quality 2 to the last step, and tells at which step a rule would have
stopped: the lowest objective so far, less than 0.1 % below what it was `patience` steps before.
"""
import argparse
from itertools import accumulate

import torch
from deltas import pictures_of

import lora_comp as lc
from lora_comp.methods import load_method

WAYS = [("latents", 10), ("latents", 20), ("latents", 40), ("adapter", 40), ("published", 40)]
PATIENCES = 5, 10
LESS = 1e-3


def stop(lowest: list[float], patience: int) -> int:
    """The step after which the rule stops; `lowest` so far, of each step."""
    flat = (i for i in range(patience, len(lowest)) if lowest[i] > lowest[i - patience] * (1 - LESS))
    return next(flat, len(lowest) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER[:NETWORK[:SIDE]]")
    parser.add_argument("--limit", type=int, default=3, help="pictures of each folder, evenly spaced")
    parser.add_argument("--adapter", choices=("seeded", "shipped"), default="seeded")
    words = parser.parse_args()
    torch.set_num_threads(1)
    codec = lc.load_codec("tic-s", 2)
    print("| trained | steps | picture | lowest |", *(f"stops at, {p} steps | loses |" for p in PATIENCES))
    print("|---|" + "---:|" * (3 + 2 * len(PATIENCES)))
    for word in words.folders:
        _, network, pictures = pictures_of(word, words.limit)
        task = lc.load_task("cls", network=network)
        method = load_method("svd_lora", codec, task.key, adapter=None if words.adapter == "seeded" else "auto")
        for name, image in pictures:
            for recipe, steps in WAYS:
                objectives: list[float] = []
                lc.encode(image, codec, task, method, recipe=recipe, steps=steps,
                          on_step=lambda _, loss, objectives=objectives: objectives.append(loss))
                lowest = list(accumulate(objectives, min))
                stops = [stop(lowest, patience) for patience in PATIENCES]
                print(f"| {recipe} | {steps} | {name} | {lowest[-1]:.4f} |",
                      *(f"{at} | {100 * (lowest[at] / lowest[-1] - 1):.1f} % |" for at in stops), flush=True)


if __name__ == "__main__":
    main()
