"""For an instance segmenter: as for a detector, but masks are scored."""

from lora_comp.tasks.det import Detection, DetectionOptions


class Segmentation(Detection):
    """`Detection` with a network that has masks; mAP is that of masks."""

    name, masks, kind = "seg", True, "segm"
    options = DetectionOptions
