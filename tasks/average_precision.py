"""Average precision by COCO's own rules, and annotations in COCO's format."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from lora_comp.data.sample import Sample

# COCOeval's first six figures: means over classes, and over IoU 0.5 to 0.95 unless the name gives another IoU.
FIGURES = ("mAP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def objects(
    boxes: Tensor,
    labels: Tensor,
    masks: Tensor | None = None,
    scores: Tensor | None = None,
    crowd: Tensor | None = None,
) -> list[dict]:
    """Annotations in COCO's format, as plain numbers and text: ground truth, or with `scores` detections.

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
    """COCO's figures over images, each {"truth": annotations, "detections": annotations with scores}.

    kind: "bbox", or "segm" for masks. A figure without ground truth (no small object, say) is left out. COCO defines
    none for images without any object: here all are 1 if nothing was detected either, else 0, and 1 where the only
    objects are crowds.
    """
    truth = [one | {"image_id": i} for i, image in enumerate(images) for one in image["truth"]]
    detections = [one | {"image_id": i} for i, image in enumerate(images) for one in image["detections"]]
    if kind == "segm":  # COCO would take the area from a box beside the mask
        detections = [{name: value for name, value in one.items() if name != "bbox"} for one in detections]
    if all(one["iscrowd"] for one in truth):
        return dict.fromkeys(FIGURES[:3], float(bool(truth) or not detections))
    if not detections:
        return dict.fromkeys(FIGURES[:3], 0.0)
    known = COCO()
    known.dataset = {
        "images": [{"id": i, "height": 0, "width": 0} for i in range(len(images))],  # masks hold their own
        "annotations": [one | {"id": n + 1} for n, one in enumerate(truth)],
        "categories": [{"id": i} for i in sorted({one["category_id"] for one in truth + detections})],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        judge = COCOeval(known, known.loadRes(detections), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: float(value) for name, value in zip(FIGURES, judge.stats[:6], strict=True) if value >= 0}
