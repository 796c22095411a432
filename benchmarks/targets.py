"""How near files come to sizes that are asked for, and what the search takes.

`python benchmarks/targets.py FOLDER [--bpp 0.25 0.5 0.75 1] [--limit 50] [--side 256]` encodes the
middle of each image with `tic-v`; with `--task cls --steps 10`, adapted by svd_lora. A row for each size: files within
1 and 2 % of it, their largest and mean difference, fits of an adapted file, and processor seconds of one thread, with
bpp= and at the quality that it found. Images whose files at quality 1 or 6 lie on one side of the size are counted as
unreachable, and not in the other figures.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

import lora_comp as lc
from lora_comp.api import Coded
from lora_comp.codecs import at_quality
from lora_comp.methods import load_method

HEADINGS = (
    "bpp",
    "unreachable",
    "files",
    "within 1 %",
    "within 2 %",
    "largest",
    "mean",
    "fits",
    "s, bpp=",
    "s, quality=",
)


def timed(work: Callable) -> tuple[Any, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--bpp", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--limit", type=int, default=50, help="images, evenly spaced")
    parser.add_argument("--side", type=int, default=256, help="of the middle that is encoded")
    parser.add_argument("--task", help="adapt to this task of lc.load_task")
    parser.add_argument("--steps", type=int, default=10)
    words = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    codec = lc.load_codec("tic-v", 6)
    task = lc.load_task(words.task) if words.task else None
    method, fits = load_method("svd_lora", codec, task.key) if task else None, 0
    if method:
        prepare = method.prepare

        def count(*arguments):
            nonlocal fits
            fits += 1
            return prepare(*arguments)

        method.prepare = count
    data = lc.load_data("folder", words.folder, limit=words.limit)
    whole = [data[i].image for i in range(len(data))]
    middles = [[(side - words.side) // 2 for side in image.shape[1:]] for image in whole]
    images = [
        image[:, max(top, 0) :, max(left, 0) :][:, : words.side, : words.side]
        for image, (top, left) in zip(whole, middles, strict=True)
    ]

    def encode(image: torch.Tensor, codec: Any, **target: float) -> tuple[Coded, float]:
        return timed(lambda: lc.encode(image, codec, task, method, words.steps, **target))

    encode(images[0], codec)  # tables and libraries
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---:|" * len(HEADINGS))
    for bpp in words.bpp:
        fits, errors, taken = 0, [], []
        for image in images:
            before = fits
            coded, searching = encode(image, codec, bpp=bpp)
            needed, (again, alone) = fits - before, encode(image, at_quality(codec, coded.quality))
            assert coded.data == again.data or task
            if coded.quality in (1, 6) and abs(coded.bpp / bpp - 1) > 0.02:
                continue
            errors.append(abs(coded.bpp / bpp - 1))
            taken.append((needed, searching, alone))
        if not errors:
            print(f"| {bpp:g} | {len(images)} | 0 |" + " - |" * (len(HEADINGS) - 3), flush=True)
            continue
        figures = torch.tensor(taken, dtype=torch.float64).mean(0).tolist()
        within = [f"{sum(error <= limit for error in errors)}" for limit in (0.01, 0.02)]
        largest, mean = f"{100 * max(errors):.1f} %", f"{100 * sum(errors) / len(errors):.1f} %"
        cells = [f"{bpp:g}", len(images) - len(errors), len(errors), *within, largest, mean]
        print(f"| {' | '.join(map(str, cells))} | {' | '.join(f'{figure:.2f}' for figure in figures)} |", flush=True)


if __name__ == "__main__":
    main()
