"""Libraries that are not installed are told of in one line, with what to do."""

import sys

import pytest

from lora_comp.errors import LoraCompError
from lora_comp.networks import load_detector


@pytest.mark.parametrize(
    "name, module, advice",
    [
        ("detectron2/COCO-Detection/faster_rcnn_R_50_FPN_3x", "detectron2", "pip install 'setuptools<81'.*detectron2"),
        ("transformers/facebook/detr-resnet-50", "transformers", r"pip install 'lora_comp\[detr\]'"),
    ],
)
def test_a_missing_library(name, module, advice, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    for adapter in ("detectron2", "detr"):
        monkeypatch.delitem(sys.modules, f"lora_comp.networks.{adapter}", raising=False)
    with pytest.raises(LoraCompError, match=advice) as error:
        load_detector(name, None)
    assert "\n" not in str(error.value)
