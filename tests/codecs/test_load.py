"""`load_codec` raises before it builds a network."""

import pytest

import lora_comp as lc
from lora_comp import codecs


@pytest.mark.parametrize(
    ("name", "quality", "weights", "message"),
    [
        ("jpeg", 1, "default", "unknown codec 'jpeg'; available are tic, tic-v"),
        ("tic", 9, "default", "quality must be 1, 2, 3 or 4, not 9"),
        ("tic-v", 9, "default", "quality must be a number from 1 to 6, not 9"),
        ("tic", 1, "default", "no weights of tic quality 1: give a file"),
        ("tic-v", 1, "/nowhere", "/nowhere is missing"),
    ],
)
def test_invalid_arguments_raise_before_building(monkeypatch, name, quality, weights, message):
    monkeypatch.setattr(codecs, "build", lambda *_: pytest.fail("a network was built first"))
    with pytest.raises(lc.LoraCompError, match=message):
        lc.load_codec(name, quality, weights)
