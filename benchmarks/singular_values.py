"""Rate of the transmitted singular values, ours and published.

`python benchmarks/singular_values.py FOLDER[:NETWORK[:SIDE]]... [--limit N] [--steps N] [--lr X]` adapts images of each
folder to the features of NETWORK (flowers) twice: by `lora_comp.encode`, and with the published quantisation step of
5e-5 and the published spike-and-slab prior in the objective. Both start from the seeded adapter at quality 2 and use
the published parameters and optimiser. SIDE crops an image to its centre, at most SIDE x SIDE.

Objective: weight x distortion + bpp, from the decoded latents. bpp counts the bytes of the file; the published singular
values, for which there is no coder, count with their ideal code length.
"""

import argparse
import math
from collections.abc import Iterator
from functools import partial

import torch
from published import formulation
from torch import Tensor

import lora_comp as lc
from lora_comp import api, bitstream
from lora_comp.data import Dataset, Folder, Scenes
from lora_comp.entropy.coder import CodedLatents
from lora_comp.finetune import Schedule, descend
from lora_comp.methods import load_method
from lora_comp.methods.svd_lora import AdaptedLowRank, LowRank, published_factor
from lora_comp.objective import GRID, Objective, tiles

STEP = 5e-5
SLAB, SPIKE, SPIKE_WEIGHT = (
    0.05,
    0.005 / 6,
    1000.0,
)  # standard deviations, and the weight of the spike relative to the slab
QUALITY = 2


def published_bits(s: Tensor) -> Tensor:
    """Bits of each change s, a multiple of STEP: -log2 of the mixture's mass on [s - STEP / 2, s + STEP / 2]."""

    def mass(sigma: float) -> Tensor:
        root = math.sqrt(0.5) / sigma
        return 0.5 * (torch.erfc((s.abs() - STEP / 2) * root) - torch.erfc((s.abs() + STEP / 2) * root))

    return -((mass(SLAB) + SPIKE_WEIGHT * mass(SPIKE)) / (1 + SPIKE_WEIGHT)).clamp_min(1e-30).log2()


class PublishedAdapted(AdaptedLowRank):
    """SVD-LoRA with the published quantisation step and prior; payloads are empty, since there is no coder."""

    def __init__(self, codec, method: LowRank, x: Tensor):
        super().__init__(codec, method.adapter, method.variant, 0, x, "published")
        for quantised in self.transmitted():
            quantised.step.fill_(STEP)

    def bits(self) -> Tensor:
        return published_bits(STEP * self.rounded().double()).sum(1).float()

    def payloads(self) -> list[bytes | None]:
        return [b""]


@torch.no_grad()
def published(image: Tensor, codec, task, method: LowRank, steps: int, lr: float) -> tuple[float, float]:
    """Objective, and bits of the singular values."""
    x, size = api.pad(image[None], codec.stride), (image.shape[1], image.shape[2])
    adapted = PublishedAdapted(codec, method, x)
    distortion, weight = partial(task.distortion, targets=task.targets(image[None])), task.weight(codec.quality)
    whole = math.ceil(max(x.shape[2:]) / GRID) * GRID
    objective = Objective(x, size, tiles(size, codec, lambda rows, columns: distortion, side=whole), weight)
    with torch.enable_grad(), formulation():
        descend(partial(objective.evaluate, adapted), adapted.groups(lr), steps, Schedule(published_factor))
    (data,) = api.write(codec, adapted.latents(x), size, method, adapted)
    header, sections = bitstream.read(data)
    y_hat = codec.coder().decompress(CodedLatents(sections.latents, header.symbols_crc, sections.hints), size)
    x_hat = codec.output.crop(adapted.codec.synthesize(y_hat), size)
    bits = adapted.bits().item()
    return weight * distortion(x_hat).item() + (8 * len(data) + bits) / (size[0] * size[1]), bits


def ours(image: Tensor, codec, task, method: LowRank, steps: int, lr: float) -> tuple[float, float, float]:
    """Objective, bits of the singular values, and the objective of the plain file."""
    coded = lc.encode(image, codec, task, method, steps, lr, recipe="published")
    assert coded.loss_before is not None and coded.loss_after is not None
    return coded.loss_after, 8 * lc.info(coded.data).get("bytes_adapter", 0), coded.loss_before


def centre_crop(image: Tensor, side: int) -> Tensor:
    height, width = (min(extent, side) for extent in image.shape[1:])
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width].clone()


def images_of(word: str, limit: int) -> tuple[str, str, Iterator[tuple[str, Tensor]]]:
    """Parse FOLDER[:NETWORK[:SIDE]]: folder, network, and the names and images."""
    folder, network, side = (word.split(":") + ["flowers", "100000"][word.count(":") :])[:3]
    data: Dataset = Scenes(count=limit, size=256) if folder == "scenes" else Folder(folder, limit=limit)
    samples = (data[i] for i in range(len(data)))
    return folder, network, ((sample.name, centre_crop(sample.image, int(side))) for sample in samples)


def row(name: str, size: str, figures: Tensor) -> None:
    plain, theirs, own, bits, own_bits = figures.tolist()
    print(
        f"| {name} | {size} | {plain:.4f} | {theirs:.4f} | {own:.4f} | {bits:.0f} | {own_bits:.0f} | "
        f"{100 * own_bits / bits:.1f} % |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER[:NETWORK[:SIDE]]")
    parser.add_argument("--limit", type=int, default=12, help="images of each folder, evenly spaced")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.02)
    words = parser.parse_args()
    codec = lc.load_codec("tic-v", QUALITY)
    method = load_method("svd_lora", codec, adapter=None)
    print("| image | size | plain | published: objective | ours: objective | published: bits | ours: bits | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    means = []
    for word in words.folders:
        folder, network, images = images_of(word, words.limit)
        task, rows = lc.load_task("cls", network=network), []
        for name, image in images:
            objective, bits = published(image, codec, task, method, words.steps, words.lr)
            own, own_bits, plain = ours(image, codec, task, method, words.steps, words.lr)
            rows.append(torch.tensor([plain, objective, own, bits, own_bits]))
            row(name, f"{image.shape[2]}x{image.shape[1]}", rows[-1])
        means.append((folder, rows))
    for folder, rows in means:
        row(f"mean of {folder}", f"{len(rows)}", torch.stack(rows).mean(0))
    if len(means) > 1:
        together = [figures for _, rows in means for figures in rows]
        row("mean of all", f"{len(together)}", torch.stack(together).mean(0))


if __name__ == "__main__":
    main()
