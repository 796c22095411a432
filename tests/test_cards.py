"""Every shipped set of weights has a card that matches its metadata."""

import json

import pytest

from lora_comp.codecs import CODECS
from lora_comp.report.card import adapters_card, codec_card, network_card
from lora_comp.weights import read_weights
from lora_comp.zoo import ROOT, codec_path
from lora_comp.zoo.registry import digest


@pytest.mark.parametrize("name", ["scenes", "flowers", "scenes-det", "scenes-seg"])
def test_network_cards_match_their_metadata(name):
    facts = json.loads((ROOT / "networks" / f"{name}.json").read_text())
    assert (ROOT / "networks" / f"{name}.md").read_text() == network_card(facts)


def test_the_adapters_card_matches_their_metadata():
    cards = [read_weights(path, "the adapter")[1] for path in sorted((ROOT / "adapters").glob("*.safetensors"))]
    assert (ROOT / "adapters" / "adapters.md").read_text() == adapters_card(cards)


def test_the_codec_card_matches_its_metadata_and_scores():
    scores = json.loads((ROOT / "codecs" / "tic-s.json").read_text())
    assert (ROOT / "codecs" / "tic-s.md").read_text() == codec_card(scores)
    measured = {row["setting"]: row["sha256"] for row in scores["curve"]}
    assert measured == {quality: digest(codec_path("tic-s", quality)) for quality in CODECS["tic-s"].qualities}, (
        "the scores are those of other weights: measure them again"
    )
