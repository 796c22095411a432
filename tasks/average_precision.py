"""Average precision by COCO's own rules, and annotations in COCO's form."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from lora_comp.data.sample import Sample

# COCOeval's first six figures, means over classes and over IoU 0.5 to 0.95 where the name tells no other.
FIGURES = ("mAP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def objects(
    boxes: Tensor,
    labels: Tensor,
    masks: Tensor | None = None,
    scores: Tensor | None = None,
    crowd: Tensor | None = None,
) -> list[dict]:
    """Annotations in COCO's form, as plain numbers and text: of what is there, or with `scores` of what was found.

    boxes: (n, 4), x1 y1 x2 y2. labels: (n,). masks: bool (n, H, W). scores: (n,). crowd: bool (n,).
    """
    made = []
    for i, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        x1, y1, x2, y2 = box
        one = {"category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        if masks is not None:
            coded = rle.encode(np.asfortranarray(masks[i].numpy(), np.uint8))
            one["segmentation"] = {"size": [int(side) for side in coded["size"]], "counts": coded["counts"].decode()}
            one["area"] = int(masks[i].sum())
        if scores is None:
            one["iscrowd"] = int(crowd is not None and bool(crowd[i]))
        else:
            one["score"] = float(scores[i])
        made.append(one)
    return made


def truth_of(sample: Sample) -> list[dict]:
    masks = sample.masks if len(sample.masks) == len(sample.boxes) else None
    return objects(sample.boxes, sample.labels, masks, crowd=sample.crowd)


def average_precision(images: Sequence[dict], kind: str = "bbox") -> dict[str, float]:
    """COCO's figures over images, each {"truth": annotations, "found": annotations with scores}.

    kind: "bbox", or "segm" for masks. A figure that the truth says nothing of (no small object, say) is left out. Where
    there is no object at all, COCO has no figure; here all are 1 if nothing was found either, else 0, and 1 where there
    are but crowds.
    """
    truth = [one | {"image_id": i} for i, image in enumerate(images) for one in image["truth"]]
    found = [one | {"image_id": i} for i, image in enumerate(images) for one in image["found"]]
    if kind == "segm":  # a box beside the mask would tell COCO the object's area
        found = [{name: value for name, value in one.items() if name != "bbox"} for one in found]
    if all(one["iscrowd"] for one in truth):
        return dict.fromkeys(FIGURES[:3], float(bool(truth) or not found))
    if not found:
        return dict.fromkeys(FIGURES[:3], 0.0)
    known = COCO()
    known.dataset = {
        "images": [{"id": i, "height": 0, "width": 0} for i in range(len(images))],  # masks tell their own
        "annotations": [one | {"id": n + 1} for n, one in enumerate(truth)],
        "categories": [{"id": i} for i in sorted({one["category_id"] for one in truth + found})],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        judge = COCOeval(known, known.loadRes(found), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: float(value) for name, value in zip(FIGURES, judge.stats[:6], strict=True) if value >= 0}
