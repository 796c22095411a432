"""Train the detector and the instance segmenter that ship, on generated scenes."""

import io
import os
from collections import OrderedDict
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import Dataset

from lora_comp.data import Sample, Scenes
from lora_comp.data.shapes import KINDS
from lora_comp.detectors import small
from lora_comp.detectors.small import SmallRCNN
from lora_comp.networks import load_network, save_network
from lora_comp.training.loop import cosine, fit
from lora_comp.training.network import adamw, hardware, in_turn, stage_variance

FRESH = 4  # new scenes in a batch
LAG = 50  # steps after which they come again, turned, and once more after as many, mirrored
CELL = 16  # pixels; sides are multiples of it, so that every other one is padded
SHOWN = 100  # scenes scored at each checkpoint
CLIP = 10.0  # of the gradient's norm
RATES = {False: 1.5e-3, True: 7e-4}  # of the detector, and of the segmenter, which starts from it


class ObjectBatches(Dataset):
    """Item i is batch i of generated scenes: pictures (B, 3, H, W), and for each what torchvision's losses ask for.

    A scene takes longer to make than to learn from, so each is seen three times: as it is, turned by 180 degrees, and
    mirrored. Sides differ from batch to batch, from 160 to 288.
    """

    def __init__(self, steps: int, seed: int):
        self.steps, self.seed = steps, seed
        self.made: OrderedDict[int, list[tuple[Tensor, Tensor, Tensor]]] = OrderedDict()

    def _fresh(self, step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Pictures as uint8, labels and masks that are new at a step."""
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


def average_precision(network: SmallRCNN, data) -> dict[str, float]:
    """COCO's mAP@[.5:.95] as "map" and AP50 as "ap50" of a detector on labelled data, and of its masks as "mask_map"
    and "mask_ap50"."""
    network.eval()
    pictures, truth, found = [], [], []
    for i in range(len(data)):
        sample: Sample = data[i]
        pictures.append({"id": i, "height": sample.image.shape[1], "width": sample.image.shape[2]})
        truth += _entries(i, sample.boxes, sample.labels, sample.masks)
        result = network.detect(sample.image[None])[0]
        entries = _entries(i, result["boxes"], result["labels"], result.get("masks"))
        found += [entry | {"score": score} for entry, score in zip(entries, result["scores"].tolist(), strict=True)]
    network.train()
    parts = {"": "bbox", "mask_": "segm"} if network.has_masks else {"": "bbox"}
    return {before + name: value for before, kind in parts.items()
            for name, value in _evaluate(network.classes, pictures, truth, found, kind).items()}


def _entries(picture: int, boxes: Tensor, labels: Tensor, masks: Tensor | None) -> list[dict]:
    """Objects in COCO's terms."""
    corner, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    entries = [{"image_id": picture, "category_id": label, "bbox": box, "iscrowd": 0, "area": box[2] * box[3]}
               for label, box in zip(labels.tolist(), torch.cat([corner, size], dim=1).tolist(), strict=True)]
    for entry, mask in zip(entries, () if masks is None else masks, strict=masks is not None):
        entry["segmentation"] = coco_mask.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
    return entries


def _evaluate(classes: list[str], pictures: list[dict], truth: list[dict], found: list[dict],
              kind: str) -> dict[str, float]:
    if not found:
        return {"map": 0.0, "ap50": 0.0}
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": pictures,
                        "annotations": [entry | {"id": i + 1} for i, entry in enumerate(truth)],
                        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)]}
        coco.createIndex()
        scores = COCOeval(coco, coco.loadRes([dict(entry) for entry in found]), kind)
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    return {"map": float(scores.stats[0]), "ap50": float(scores.stats[1])}


def begin_from(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Take over the weights whose name and shape fit."""
    own = network.state_dict()
    network.load_state_dict(own | {k: w for k, w in weights.items() if k in own and own[k].shape == w.shape})


def train_detector(network: SmallRCNN, batches: ObjectBatches, unseen: dict, measured_on, out: str | os.PathLike,
                   work: str | os.PathLike, steps: int, rate: float, seed: int = 0, **facts) -> dict:
    """Train a SmallRCNN from the weights it has and write it to `out` with its facts.

    unseen: labelled data sets by what the names of their scores end in, "" first. measured_on: data set for the
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
        with torch.autocast("cpu", torch.bfloat16):
            losses = network(images.to(memory_format=torch.channels_last), targets)[1]
        loss = torch.stack([*losses.values()]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        return {"loss": float(loss.detach())} | {k.removeprefix("loss_"): float(v.detach()) for k, v in losses.items()}

    last = fit(Path(work), {"network": network, "optimiser": optimiser}, step, steps=steps, seed=seed,
               validate=lambda: average_precision(network, shown), title=network.name)
    network.stage_variance = stage_variance(network, measured_on)
    facts |= {"steps": steps, "minutes": round(last["minutes"], 1)}
    for suffix, data in unseen.items():
        facts |= {name + suffix: round(value, 4) for name, value in average_precision(network, data).items()}
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
        begin_from(network, small.load(detector).state_dict())
        start = "the detector of scenes"
    else:
        begin_from(network, {f"pyramid.body.{k}": w for k, w in load_network("scenes").state_dict().items()})
        start = "the classifier of scenes"
    unseen = {"": Scenes("val", 500), "_test": Scenes("test", 300), "_test_odd_sizes": Scenes("test", 300, "odd")}
    return train_detector(
        network, ObjectBatches(steps, int(masks)), unseen, Scenes("train", 64, seed=2), out, work, steps,
        RATES[masks], started_from=start, trained_on="generated scenes, split train, sides 160 to 288",
        scored_on="500 scenes of 256x256, split val; 300 of split test; 300 of split test, sides 161 to 351")
