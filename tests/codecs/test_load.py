"""What `load_codec` refuses, it refuses before it builds a network."""

import pytest

import lora_comp as lc
from lora_comp import codecs


@pytest.mark.parametrize(
    ("name", "quality", "weights", "says"),
    [
        ("jpeg", 1, "default", "no codec 'jpeg'; known are tic, tic-s"),
        ("tic-s", 9, "default", "quality must be 1, 2, 3 or 4, not 9"),
        ("tic", 1, "default", "no weights of tic quality 1: name a file"),
        ("tic-s", 1, "/nowhere", "/nowhere is missing"),
    ],
)
def test_a_mistake_is_told_at_once(monkeypatch, name, quality, weights, says):
    monkeypatch.setattr(codecs, "build", lambda *_: pytest.fail("a network was built first"))
    with pytest.raises(lc.LoraCompError, match=says):
        lc.load_codec(name, quality, weights)
