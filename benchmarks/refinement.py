"""What steps of refinement gain, and their time.

`python benchmarks/refinement.py FOLDER:TASK[:SIDE]... [--limit N] [--quality Q ...] [--steps N ...] [--method NAME]`
encodes images of each folder (or of `scenes`, generated) with `tic-v` and each number of steps of `refine`. SIDE crops
an image to its centre. It prints a row for each file that was decoded, and the means of each quality.

Objective: weight x distortion + bpp. Bits: by how much the file is smaller than a plain one of equal distortion, which
is interpolated between those of all qualities (logarithms of both, linearly). Seconds of processor time on one thread,
the plain file and decoding included.
"""

import argparse
import time

import numpy as np
import torch
from singular_values import images_of

import lora_comp as lc
from lora_comp.api import Coded
from lora_comp.codecs import CODECS


def plain_curve(image: torch.Tensor, task) -> np.ndarray:
    """Logarithms of distortion, rising, and bpp of the plain files of all qualities: (2, n)."""
    codecs = [lc.load_codec("tic-v", quality) for quality in CODECS["tic-v"].qualities]
    files = [lc.encode(image, codec, task, "none") for codec in codecs]
    points = [(distortion(one, codec, task), one.bpp) for one, codec in zip(files, codecs, strict=True)]
    return np.log(sorted(points)).T


def distortion(coded: Coded, codec, task) -> float:
    return (coded.loss_after - coded.bpp) / task.weight(codec.quality)


def rate_at(curve: np.ndarray, level: float) -> float:
    """The bpp of plain files at a distortion; beyond the ends of the curve its last segment goes on."""
    x, y = curve
    i = int(np.clip(np.searchsorted(x, np.log(level)), 1, len(x) - 1))
    slope = (y[i] - y[i - 1]) / (x[i] - x[i - 1])
    return float(np.exp(y[i] + slope * (np.log(level) - x[i])))


def gains(image: torch.Tensor, curve: np.ndarray, codec, task, method: str, steps: int) -> list[float]:
    """Lower objective in percent, fewer bits at equal distortion in percent, and seconds."""
    start = time.process_time()
    coded = lc.encode(image, codec, task, method, refine=steps)
    seconds = time.process_time() - start
    assert coded.loss_before is not None and coded.loss_after is not None
    fewer = 1 - coded.bpp / rate_at(curve, distortion(coded, codec, task))
    return [100 * (1 - coded.loss_after / coded.loss_before), 100 * fewer, seconds]


def row(name: str, quality: int, steps: int, figures: list[float]) -> None:
    objective, bits, seconds = figures
    print(f"| {name} | {quality} | {steps} | {objective:.2f} % | {bits:.2f} % | {seconds:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER:TASK[:SIDE]")
    parser.add_argument("--limit", type=int, default=2, help="images of each folder, evenly spaced")
    parser.add_argument("--quality", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 100, 300, 1000, 3000])
    parser.add_argument("--method", default="none")
    words = parser.parse_args()
    torch.set_num_threads(1)
    print("| image | quality | refine | objective | bits | seconds |\n|---|---:|---:|---:|---:|---:|")
    for word in words.folders:
        folder, name, images = images_of(word, words.limit)
        task = lc.load_task(name)
        curves = [(image_name, image, plain_curve(image, task)) for image_name, image in images]
        for steps in words.steps:
            for quality in words.quality:
                codec, figures = lc.load_codec("tic-v", quality), []
                for image_name, image, curve in curves:
                    figures.append(gains(image, curve, codec, task, words.method, steps))
                    row(image_name, quality, steps, figures[-1])
                row(f"mean of {folder}", quality, steps, np.mean(figures, axis=0).tolist())


if __name__ == "__main__":
    main()
