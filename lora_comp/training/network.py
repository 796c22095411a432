"""Train the small classifiers that ship as task networks, on `scenes` or on a folder of images."""

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lora_comp.data import Folder, Sample, Scenes, load_data
from lora_comp.data.folders import spread
from lora_comp.data.shapes import KINDS
from lora_comp.networks.rcnn import SmallRCNN
from lora_comp.networks.resnet import SmallResNet
from lora_comp.networks.saved import save_network
from lora_comp.objective import use_bf16
from lora_comp.tasks.labels import Labels
from lora_comp.training.loop import cosine, fit

CELL = 16  # pixels; the stride of the third stage
SCENES, PICTURES = 24, 48  # in a batch
RATE, DECAY, SMOOTHING = 3e-3, 0.05, 0.1
SHOWN = 100  # images scored at each checkpoint
MIXED = 0.93  # share of the steps on images of a folder that change and mix them; the last ones show them as they are


def _cells(sample: Sample) -> Tensor:
    """What share of each cell of 16x16 pixels is of each kind, the background last: (kinds + 1, H / 16, W / 16)."""
    shares = F.avg_pool2d(sample.masks.float(), CELL)  # (n, H / 16, W / 16)
    cells = torch.zeros(len(KINDS) + 1, *shares.shape[1:])
    cells[sample.labels] = shares
    cells[-1] = 1 - shares.sum(dim=0)
    return cells


class SceneBatches(Dataset):
    """Item i is batch i of generated scenes: images, labels, and what is where in cells of 16x16 pixels.

    Sides differ from batch to batch, so that the network fits any size, and grow from 96..160 to 192..272.
    """

    def __init__(self, steps: int, seed: int):
        self.steps, self.seed = steps, seed
        self.classes = list(KINDS)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        progress = step / self.steps
        sides = np.random.RandomState([self.seed, step]).uniform(96 + 96 * progress, 160 + 112 * progress, size=2)
        height, width = (int(CELL * round(side / CELL)) for side in sides)
        scenes = Scenes("train", (step + 1) * SCENES, (height, width), self.seed)
        samples = [scenes[step * SCENES + i] for i in range(SCENES)]
        images = torch.stack([s.image for s in samples])
        return images, torch.tensor([s.label for s in samples]), torch.stack([_cells(s) for s in samples])


class FolderBatches(Dataset):
    """Item i is batch i of a folder's images, shuffled in each epoch: cropped, mirrored, changed by one operation of
    TrivialAugment (ICCV 2021) and mixed in pairs, by CutMix (ICCV 2019) or mixup (ICLR 2018), with shares of the
    classes as labels (B, classes). A few thousand images are learnt by heart without that. In the last steps they are
    only cropped and mirrored: the batch norms should know what images are like.

    Sides grow from 96 to 160, and are 176 in the last steps.
    """

    def __init__(self, folder: Folder, steps: int, seed: int):
        self.folder, self.steps, self.seed = folder, steps, seed
        self.classes = folder.classes
        self.read = lru_cache(maxsize=4096)(lambda index: (folder[index].image * 255).round().byte())
        self.labels = torch.tensor([label for _, label in folder.files])
        count = len(self.classes)
        self.mix = v2.RandomChoice([v2.CutMix(num_classes=count), v2.MixUp(alpha=0.2, num_classes=count)])

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, None]:
        epoch, first = divmod(step, max(1, len(self.folder) // PICTURES))
        order = np.random.RandomState([self.seed, epoch]).permutation(len(self.folder))
        torch.manual_seed(self.seed * 1_000_003 + step)
        mixed = step < MIXED * self.steps
        side = CELL * round((96 + 64 * step / self.steps) / CELL) if mixed else 176
        change = v2.Compose(
            [
                v2.RandomResizedCrop(side, (0.2, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.TrivialAugmentWide() if mixed else nn.Identity(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        indexes = order[first * PICTURES : (first + 1) * PICTURES].tolist()
        images, labels = torch.stack([change(self.read(i)) for i in indexes]), self.labels[indexes]
        return *(self.mix(images, labels) if mixed else (images, labels)), None


@torch.no_grad()
def top1(network: SmallResNet, data) -> float:
    """Share of the images of a labelled data set that the network names rightly, their classes found by name."""
    network.eval()
    right, labels = 0, Labels(network)
    for i in range(len(data)):
        sample = data[i]
        right += int(network(sample.image[None]).argmax()) == labels.of(sample.classes).indexes[sample.label]
    network.train()
    return right / len(data)


@torch.no_grad()
def stage_variance(network: SmallResNet | SmallRCNN, data) -> list[float]:
    """Mean over images of the variance of each stage's numbers within an image."""
    network.eval()
    each = [[float(f.var()) for f in network.stages(data[i].image[None])] for i in range(len(data))]
    return np.mean(each, axis=0).round(5).tolist()


def in_turn(batches: Dataset, steps: int) -> Callable[[int], tuple]:
    """A function that gives batch after batch, made ahead by another process; its first argument says from where on."""
    queue: Iterator | None = None

    def batch(index: int) -> tuple:
        nonlocal queue
        if queue is None:  # the first step of this run, which is not 0 after a stop
            # A generator of its own, so that starting it takes no numbers from the step's.
            queue = iter(
                DataLoader(
                    batches,
                    batch_size=None,
                    sampler=range(index, steps),
                    num_workers=1,
                    prefetch_factor=4,
                    generator=torch.Generator(),
                )
            )
        return next(queue)

    return batch


def adamw(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """AdamW that decays weights, and no biases and no scales of norms."""
    parameters = list(parameters)
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=rate,
    )


def hardware() -> str:
    return f"{torch.get_num_threads()} thread(s) of a {platform.machine()} processor"


def train_network(
    name: str,
    batches: SceneBatches | FolderBatches,
    val,
    measured_on,
    out: str | os.PathLike,
    work: str | os.PathLike,
    steps: int,
    seed: int = 0,
    **facts,
) -> dict:
    """Train a SmallResNet and write it to `out` with its facts.

    val: labelled data set for the score. measured_on: data set for the variance of the stages, none of it of `val`.
    work: folder of the checkpoint; a second start goes on from there. steps: batches.
    Returns what the .json says besides the network itself.
    """
    torch.manual_seed(seed)
    network = SmallResNet(batches.classes, name).to(memory_format=torch.channels_last).train()
    where = nn.Conv2d(network.widths[2], len(batches.classes) + 1, 1)  # names each cell; not part of what is saved
    optimiser = adamw([*where.parameters(), *network.parameters()], RATE)
    batch = in_turn(batches, steps)
    shown = [val[i] for i in spread(list(range(len(val))), SHOWN)]

    def step(index: int, progress: float) -> dict[str, float]:
        images, labels, cells = batch(index)
        for group in optimiser.param_groups:
            group["lr"] = RATE * cosine(progress, warmup=0.05)
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16(images.device)):
            stages, logits = network.stages_and_logits(images.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
            if cells is not None:
                loss = loss + 2 * F.cross_entropy(where(stages[2]).float(), cells)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        named = labels if labels.ndim == 1 else labels.argmax(1)
        right = (logits.argmax(1) == named).float().mean()
        return {"loss": float(loss.detach()), "right": float(right)}

    last = fit(
        Path(work),
        {"network": network, "where": where, "optimiser": optimiser},
        step,
        steps=steps,
        seed=seed,
        validate=lambda: {"val": top1(network, shown)},
        title=name,
    )
    network.stage_variance = stage_variance(network, measured_on)
    facts |= {
        "steps": steps,
        "minutes": round(last["minutes"], 1),
        "top1": round(top1(network, val), 4),
        "parameters": sum(p.numel() for p in network.parameters()),
        "hardware": hardware(),
    }
    save_network(network, out, **facts)
    return facts


def train_scenes(out: str | os.PathLike, work: str | os.PathLike, steps: int) -> dict:
    """The network "scenes": twelve kinds of object, trained on generated scenes, scored on 500 that it never saw."""
    measured_on = Scenes("train", 64, 256, seed=1)
    return train_network(
        "scenes",
        SceneBatches(steps, 0),
        Scenes("val", 500, 256),
        measured_on,
        out,
        work,
        steps,
        trained_on="generated scenes, split train, sides 96 to 272",
        scored_on="500 scenes, split val",
    )


def train_flowers(folder: str | os.PathLike, out: str | os.PathLike, work: str | os.PathLike, steps: int) -> dict:
    """The network "flowers": five kinds, trained on FOLDER/train, scored on FOLDER/val."""
    train, val = Folder(folder, "train"), load_data("folder", folder, "val")
    return train_network(
        "flowers",
        FolderBatches(train, steps, 0),
        val,
        Folder(folder, "train", limit=64),
        out,
        work,
        steps,
        trained_on=f"{len(train)} photographs of flowers, split train",
        scored_on=f"{len(val)} photographs, split val",
    )
