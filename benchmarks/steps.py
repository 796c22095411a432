"""Objective and time of few steps, against the 40 published ones.

`python benchmarks/steps.py FOLDER[:NETWORK[:SIDE]]... [--limit N] [--quality Q] [--adapter seeded|shipped]` adapts
images of each folder (or of `scenes`, generated) as published, with the published quantisation step and prior (see
singular_values.py), and by `lora_comp.encode` with the arguments in `WAYS`. The codec is `tic-v` with a network of the
package, or with `--tic FILE` the larger `tic` with these weights and any network (`torchvision/resnet50`) with random
weights.

Objective: weight x distortion + bpp, from the decoded latents; ours counts every byte of a decoded file. Seconds of
processor time on one thread: ours include `refine`, both files and their decoding; published only the steps and one
file.
"""

import argparse
import time

import torch
from singular_values import images_of, published

import lora_comp as lc
from lora_comp.methods import load_method

WAYS: dict[str, dict] = {  # arguments of `encode`
    "before, 20": {"recipe": "published", "steps": 20, "lr": 2e-2},
    "adapter, 10": {"recipe": "adapter", "steps": 10},
    "latents, 3": {"steps": 3},
    "latents, 5": {"steps": 5},
    "latents, 10": {"steps": 10},
}


def compare(image: torch.Tensor, codec, task, method) -> torch.Tensor:
    """Objectives of the plain file, of 40 published steps and of `WAYS`, then the seconds of all but the plain file."""
    start = time.process_time()
    objectives, seconds = [published(image, codec, task, method, 40, 5e-3)[0]], [time.process_time() - start]
    for way in WAYS.values():
        start = time.process_time()
        coded = lc.encode(image, codec, task, method, **way)
        seconds.append(time.process_time() - start)
        assert coded.loss_after is not None
        objectives.append(coded.loss_after)
    assert coded.loss_before is not None
    return torch.tensor([coded.loss_before, *objectives, *seconds])


def row(name: str, figures: list[str]) -> None:
    print(f"| {name} | {' | '.join(figures)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER[:NETWORK[:SIDE]]")
    parser.add_argument("--limit", type=int, default=8, help="images of each folder, evenly spaced")
    parser.add_argument("--quality", type=int, default=2)
    parser.add_argument("--adapter", choices=("seeded", "shipped"), default="seeded")
    parser.add_argument("--tic", metavar="FILE", help="weights of tic, by python -m lora_comp.train codec=tic")
    words = parser.parse_args()
    torch.set_num_threads(1)
    codec = lc.load_codec("tic", words.quality, words.tic) if words.tic else lc.load_codec("tic-v", words.quality)
    row("image", ["plain", "published, 40", *WAYS])
    row("---", ["---:"] * (len(WAYS) + 2))
    for word in words.folders:
        folder, network, images = images_of(word, words.limit)
        task, rows = lc.load_task("cls", network=network, weights=None if words.tic else "default"), []
        method = load_method("svd_lora", codec, task.key, adapter=None if words.adapter == "seeded" else "auto")
        for name, image in images:
            rows.append(compare(image, codec, task, method))
            row(name, [f"{value:.4f}" for value in rows[-1][: len(WAYS) + 2].tolist()])
        objectives, seconds = torch.stack(rows).split(len(WAYS) + 2, 1)
        row(f"mean of {folder}, {len(rows)}", [f"{value:.4f}" for value in objectives.mean(0).tolist()])
        row("no higher than published", ["", "", *map(str, (objectives[:, 2:] <= objectives[:, 1:2]).sum(0).tolist())])
        row("seconds, mean", ["", *(f"{value:.2f}" for value in seconds.mean(0).tolist())])


if __name__ == "__main__":
    main()
