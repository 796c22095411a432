"""For a detector: distance between the features of its pyramid on the decoded and on the original image.

After TransTIC (ICCV 2023) and LoRA_comp (CVPR 2025): the loss on an image is feature distance + lambda x bpp. For the
networks of these papers, the feature distance is a scale times the sum over the pyramid of the mean squared errors.
"""

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_comp.data.sample import Sample
from lora_comp.errors import LoraCompError
from lora_comp.networks import load_detector
from lora_comp.settings import setting
from lora_comp.tasks.average_precision import average_precision, objects, truth_of
from lora_comp.tasks.cls import LAMBDAS as OF_VARIANCES
from lora_comp.tasks.features import FeatureDistance
from lora_comp.tasks.labels import CLASSES_HELP, HOW, Labels, unmatched
from lora_comp.tasks.rate import rate_lambda

# Weight of bpp against the published feature distance; published for four rate points. Distances in units of variances
# are weighed as a classifier's are.
LAMBDAS = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05)


@dataclass(frozen=True)
class DetectionOptions:
    network: str = setting(
        "scenes", "scenes, torchvision/NAME, detectron2/CONFIG, transformers/NAME (boxes), or a checkpoint", path=True
    )
    weights: str | None = setting(
        "default", "those that the network comes with; a file; null: seeded random", path=True
    )
    classes: Any = setting(None, CLASSES_HELP, path=True)


class Detection:
    """Distortion is the feature distance; the score is mAP by COCO's rules over all images of a run where objects of
    the network's classes are annotated, else the same figure against the network's detections on the originals, called
    agreement. Objects of classes that the network does not have are left out, and so are detections of classes that
    the data set does not annotate.

    network, weights: as for `lora_comp.networks.load_detector`. classes: the table of names of `labels.Labels`.
    """

    name, masks, kind = "det", False, "bbox"
    options = DetectionOptions
    lr = 4e-2  # docs/finetuning.md
    score_threshold = 0.5  # from which a detection on an original without annotations counts as ground truth
    metrics = ("score", "mAP", "AP50", "AP75", "feature_distance")

    def __init__(
        self,
        network: str | os.PathLike = "scenes",
        weights: str | os.PathLike | None = "default",
        classes: Mapping | str | os.PathLike | None = None,
    ):
        self.network = load_detector(network, weights, self.masks)
        self.key = f"{self.name}-{network}" + ("" if weights == "default" else f"-{weights}")
        self.features = FeatureDistance(self.network, self.network.published_scale)
        self.targets, self.distortion = self.features.targets, self.features.distortion
        self.device = torch.device("cpu")
        self.labels = Labels(self.network, classes)
        self._answers: dict[tuple[str, int], list[dict]] = {}

    def to(self, device: torch.device) -> "Detection":
        self.device = device
        self.features.to(device)
        return self

    def loss(self, decoded: Tensor, original: Tensor) -> Tensor:
        return self.distortion(decoded, self.targets(original)).mean()

    def weight(self, quality: float) -> float:
        if self.features.published_scale is None:
            return 1000 * rate_lambda(OF_VARIANCES, quality)
        return 1 / rate_lambda(LAMBDAS, quality)

    def detections(self, image: Tensor) -> list[dict]:
        """The network's detections in an image (3, H, W), in COCO's format."""
        [seen] = self.network.detect(image[None].clamp(0, 1).to(self.device))
        seen = {name: value.cpu() for name, value in seen.items()}
        return objects(seen["boxes"], seen["labels"], seen["masks"] if self.masks else None, seen["scores"])

    def answer(self, image: Tensor) -> str:
        """The classes of the objects detected in an image (3, H, W), the highest score first."""
        labels = [one["category_id"] for one in self.detections(image) if one["score"] >= self.score_threshold]
        names = [self.network.classes[i] if self.network.classes else f"class {i}" for i in labels]
        counts = {name: names.count(name) for name in names}
        return ", ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items()) or "nothing"

    def notes(self, data: str, sample: Sample) -> list[str]:
        """What the score of a data set with such samples leaves out, or what it is instead of mAP."""
        if not sample.annotated or not sample.classes:
            return []
        matched, network = self.labels.of(sample.classes), self.network.name
        self._annotated(sample)  # raises what is to be said before anything is coded
        if not (missing := unmatched(sample, matched)):
            return []
        left_out = self._annotated(sample) is not None
        then = "their objects are left out" if left_out else "the score is agreement with its own detections"
        return [f"the network {network} has no class for {missing} of {data}: {then} ({HOW})"]

    def _annotated(self, sample: Sample) -> tuple[list[dict], list[int] | None] | None:
        """The annotated objects of the network's classes, and those of its classes that are annotated, None for all;
        None where the image is not annotated with any of its classes."""
        if not sample.annotated:
            return None
        matched = self.labels.of(sample.classes) if sample.classes else None
        if matched and all(matched.indexes[i] is None for i in sample.present or range(len(sample.classes))):
            return None
        if self.masks and len(sample.masks) < len(sample.boxes):
            raise LoraCompError(f"{sample.name} is annotated with boxes alone: use task=det, or data with masks")
        truth = truth_of(sample)
        if matched:
            indexes = [matched.indexes[one["category_id"]] for one in truth]
            own = [one | {"category_id": i} for one, i in zip(truth, indexes, strict=True) if i is not None]
            return own, matched.known
        known, most = len(self.network.classes), max((one["category_id"] for one in truth), default=-1)
        if known and most >= known:
            raise LoraCompError(
                f"{sample.name} has objects of class {most}, but the network {self.network.name} "
                f"has classes 0 to {known - 1}: score it on data of its own classes"
            )
        return truth, None

    def _own_answer(self, sample: Sample) -> list[dict]:
        """The network's confident detections on the original, as truth."""
        key = sample.name, zlib.crc32(sample.image.numpy().tobytes())
        if key not in self._answers:  # the same at every rate point
            counted = [one for one in self.detections(sample.image) if one.pop("score") >= self.score_threshold]
            self._answers[key] = [one | {"iscrowd": 0} for one in counted]
        return self._answers[key]

    @torch.no_grad()
    def measure(self, decoded: Tensor, sample: Sample) -> dict:
        pair = torch.stack([decoded.clamp(0, 1).cpu(), sample.image]).to(self.device)
        stages = self.network.stages(pair)
        distance = self.features.between([stage[:1] for stage in stages], [stage[1:] for stage in stages])
        annotated = self._annotated(sample)
        truth, counted = annotated or (self._own_answer(sample), None)
        found = [one for one in self.detections(decoded) if counted is None or one["category_id"] in counted]
        seen = {"truth": truth, "detections": found, "annotated": annotated is not None}
        return {**self.pool([seen]), "feature_distance": float(distance), "objects": seen}

    def pool(self, images: list[dict]) -> dict[str, float]:
        """The metrics of a data set, from the "objects" that `measure` returned of each image."""
        figures = average_precision(images, self.kind)
        value = figures.pop("mAP")
        return {"score": value, "mAP" if images[0]["annotated"] else "agreement": value, **figures}
