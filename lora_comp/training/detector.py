"""Train the detector and the instance segmenter that ship, on generated scenes."""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lora_comp.data import Sample, Scenes
from lora_comp.data.shapes import KINDS
from lora_comp.networks import rcnn, resnet
from lora_comp.networks.rcnn import SmallRCNN
from lora_comp.networks.saved import save_network
from lora_comp.objective import use_bf16
from lora_comp.tasks.average_precision import average_precision, objects, truth_of
from lora_comp.training.loop import cosine, fit
from lora_comp.training.network import adamw, hardware, in_turn, stage_variance

FRESH = 4  # new scenes in a batch
LAG = 50  # steps after which they come again, turned, and once more after as many, mirrored
CELL = 16  # pixels; sides are multiples of it, so that every other one is padded
SHOWN = 100  # scenes scored at each checkpoint
CLIP = 10.0  # of the gradient's norm
RATES = {False: 1.5e-3, True: 7e-4}  # of the detector, and of the segmenter, which starts from it


class ObjectBatches(Dataset):
    """Item i is batch i of generated scenes: images (B, 3, H, W), and for each what torchvision's losses ask for.

    A scene takes longer to make than to learn from, so each is seen three times: as it is, turned by 180 degrees, and
    mirrored. Sides differ from batch to batch, from 160 to 288.
    """

    def __init__(self, steps: int, seed: int):
        self.steps, self.seed = steps, seed
        self.made: OrderedDict[int, list[tuple[Tensor, Tensor, Tensor]]] = OrderedDict()

    def _fresh(self, step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Images as uint8, labels and masks that are new at a step."""
        if step not in self.made:
            sides = np.random.RandomState([self.seed, step % LAG]).uniform(160, 288, size=2)
            height, width = (int(CELL * round(side / CELL)) for side in sides)
            scenes = Scenes("train", (step + 1) * FRESH, (height, width), self.seed)
            samples = [scenes[step * FRESH + i] for i in range(FRESH)]
            self.made[step] = [((s.image * 255).round().byte(), s.labels, s.masks) for s in samples]
            if len(self.made) > 2 * LAG + 1:
                self.made.popitem(last=False)
        return self.made[step]

    def __getitem__(self, step: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        images, targets = [], []
        for times, axes in enumerate(((), (-2, -1), (-1,))):
            for image, labels, masks in self._fresh(step - times * LAG) if step >= times * LAG else ():
                images.append(image.flip(axes).float() / 255)
                turned = masks.flip(axes)
                targets.append({"boxes": _boxes(turned), "labels": labels + 1, "masks": turned.byte()})
        return torch.stack(images), targets


def _boxes(masks: Tensor) -> Tensor:
    """The smallest boxes (n, 4) around masks (n, H, W), right and lower edges exclusive."""
    edges = []
    for seen in (masks.any(dim=1), masks.any(dim=2)):  # columns, then rows
        length = seen.shape[1]
        first, last = seen.byte().argmax(dim=1), length - seen.flip(1).byte().argmax(dim=1)
        edges.append((first, last))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1).float()


def scores(network: SmallRCNN, data) -> dict[str, float]:
    """COCO's mAP@[.5:.95] and AP50 of a detector on annotated data, and those of its masks as "mask mAP" and so on."""
    network.eval()
    images = []
    for i in range(len(data)):
        sample: Sample = data[i]
        [seen] = network.detect(sample.image[None])
        detections = objects(seen["boxes"], seen["labels"], seen.get("masks"), seen["scores"])
        images.append({"truth": truth_of(sample), "detections": detections})
    network.train()
    kinds = {"": "bbox", "mask ": "segm"} if network.has_masks else {"": "bbox"}
    return {
        before + name: average_precision(images, kind)[name]
        for before, kind in kinds.items()
        for name in ("mAP", "AP50")
    }


def begin_from(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Take over the weights whose name and shape fit."""
    own = network.state_dict()
    network.load_state_dict(own | {k: w for k, w in weights.items() if k in own and own[k].shape == w.shape})


def train_detector(
    network: SmallRCNN,
    batches: ObjectBatches,
    unseen: dict,
    measured_on,
    out: str | os.PathLike,
    work: str | os.PathLike,
    steps: int,
    rate: float,
    seed: int = 0,
    **facts,
) -> dict:
    """Train a SmallRCNN from the weights it has and write it to `out` with its facts.

    unseen: annotated data sets by what the names of their scores end in, "" first. measured_on: data set for the
    variance of the stages, none of it of those. work: folder of the checkpoint; a second start goes on from there.
    steps: batches. rate: of learning.
    Returns what the .json says besides the network itself.
    """
    network.requires_grad_(True).to(memory_format=torch.channels_last).train()
    optimiser = adamw(network.parameters(), rate)
    batch = in_turn(batches, steps)
    val = unseen[""]
    shown = [val[i] for i in range(min(SHOWN, len(val)))]

    def step(index: int, progress: float) -> dict[str, float]:
        images, targets = batch(index)
        for group in optimiser.param_groups:
            group["lr"] = rate * cosine(progress, warmup=0.05)
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16(images.device)):
            losses = network(images.to(memory_format=torch.channels_last), targets)[1]
        loss = torch.stack([*losses.values()]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        return {"loss": float(loss.detach())} | {k.removeprefix("loss_"): float(v.detach()) for k, v in losses.items()}

    last = fit(
        Path(work),
        {"network": network, "optimiser": optimiser},
        step,
        steps=steps,
        seed=seed,
        validate=lambda: scores(network, shown),
        title=network.name,
    )
    network.stage_variance = stage_variance(network, measured_on)
    facts |= {"steps": steps, "minutes": round(last["minutes"], 1)}
    for suffix, data in unseen.items():
        facts |= {name + suffix: round(value, 4) for name, value in scores(network, data).items()}
    facts |= {"parameters": sum(p.numel() for p in network.parameters()), "hardware": hardware()}
    save_network(network, out, **facts)
    return facts


def train_scenes_detector(masks: bool, out: Path, work: str | os.PathLike, steps: int) -> dict:
    """The detector "scenes", from the classifier that ships, or the segmenter, from the detector beside `out` or else
    from the classifier too."""
    torch.manual_seed(0)
    network = SmallRCNN(list(KINDS), "scenes", masks)
    detector = out.with_name("scenes-det.safetensors")
    if masks and detector.exists():
        begin_from(network, rcnn.load(str(detector)).state_dict())
        start = "the detector of scenes"
    else:
        begin_from(network, {f"pyramid.body.{k}": w for k, w in resnet.load("scenes").state_dict().items()})
        start = "the classifier of scenes"
    unseen = {
        "": Scenes("val", 500, 256),
        " test": Scenes("test", 300, 256),
        " test odd sizes": Scenes("test", 300, "odd"),
    }
    return train_detector(
        network,
        ObjectBatches(steps, int(masks)),
        unseen,
        Scenes("train", 64, 256, seed=2),
        out,
        work,
        steps,
        RATES[masks],
        started_from=start,
        trained_on="generated scenes, split train, sides 160 to 288",
        scored_on="500 scenes of 256x256, split val; 300 of split test; 300 of split test, sides 161 to 351",
    )
