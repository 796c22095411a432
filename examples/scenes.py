"""mAP over bpp and BD-rate of JPEG, WebP and AVIF against a run of task=det or task=seg on generated scenes.

python -m lora_comp.run task=det data.size=256 out=results/det
python examples/scenes.py det results/det/results.json
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import lora_comp as lc
from lora_comp.report.bdrate import bd_rate
from lora_comp.report.codecs import round_trip

CLASSIC = {"jpeg": (5, 10, 20, 35, 60), "webp": (1, 10, 30, 60), "avif": (15, 30, 45, 60)}


def score(task, samples: list, decoded: Iterator[Tensor]) -> float:
    return task.pool([task.measure(image, s)["objects"] for s, image in zip(samples, decoded, strict=True)])["mAP"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("det", "seg"))
    parser.add_argument("results", type=Path)
    words = parser.parse_args()
    rows = json.loads(words.results.read_text())["summary"]
    data = lc.load_data("scenes", limit=rows[0]["count"], size=256)
    task, samples = lc.load_task(words.task), [data[i] for i in range(len(data))]
    print(f"uncompressed              mAP {score(task, samples, (s.image for s in samples)):.3f}")
    plain = [(row["bpp"], row["score"]) for row in rows if row["method"] == "none"]
    for name, settings in CLASSIC.items():
        curve = []
        for setting in settings:
            coded = [round_trip(name, setting, s.image) for s in samples]
            bpp = np.mean([8 * size / s.image[0].numel() for (size, _), s in zip(coded, samples, strict=True)])
            images = (torch.from_numpy(image).permute(2, 0, 1).float() / 255 for _, image in coded)
            curve.append((float(bpp), score(task, samples, images)))
            print(f"{name:6}{setting:>4} {bpp:7.3f} bpp    mAP {curve[-1][1]:.3f}")
        print(f"BD-rate of {name} against the plain codec, at equal mAP: {bd_rate(plain, curve):+.1f} %")


if __name__ == "__main__":
    main()
