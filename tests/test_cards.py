"""Every set of weights that ships has a card, and the cards say what the weights' metadata says."""

import json

import pytest

from lora_comp.codecs import CODECS
from lora_comp.report.card import adapters_card, codec_card, network_card
from lora_comp.weights import read_weights
from lora_comp.zoo import ROOT, codec_path
from lora_comp.zoo.registry import digest


@pytest.mark.parametrize("name", ["scenes", "flowers", "scenes-det", "scenes-seg"])
def test_the_card_of_a_network_is_that_of_its_weights(name):
    facts = json.loads((ROOT / "networks" / f"{name}.json").read_text())
    assert (ROOT / "networks" / f"{name}.md").read_text() == network_card(facts)


def test_the_card_of_the_adapters_is_that_of_their_weights():
    cards = [read_weights(path, "the adapter")[1] for path in sorted((ROOT / "adapters").glob("*.safetensors"))]
    assert (ROOT / "adapters" / "adapters.md").read_text() == adapters_card(cards)


def test_the_card_of_the_codec_is_that_of_its_weights_and_their_scores():
    scores = json.loads((ROOT / "codecs" / "tic-s.json").read_text())
    assert (ROOT / "codecs" / "tic-s.md").read_text() == codec_card(scores)
    told = {row["setting"]: row["sha256"] for row in scores["curve"]}
    assert told == {quality: digest(codec_path("tic-s", quality)) for quality in CODECS["tic-s"].qualities}, (
        "measure them again"
    )
