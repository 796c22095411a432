"""Every set of weights that ships has a card, and the cards say what the weights' metadata says."""
import json

import pytest

from lora_comp.codecs import QUALITIES
from lora_comp.report.card import adapters_card, network_card
from lora_comp.zoo import ROOT, codec_path, read_weights


@pytest.mark.parametrize("name", ["scenes", "flowers"])
def test_the_card_of_a_network_is_that_of_its_weights(name):
    facts = json.loads((ROOT / "networks" / f"{name}.json").read_text())
    assert (ROOT / "networks" / f"{name}.md").read_text() == network_card(facts)


def test_the_card_of_the_adapters_is_that_of_their_weights():
    cards = [read_weights(path, "the adapter")[1] for path in sorted((ROOT / "adapters").glob("*.safetensors"))]
    assert (ROOT / "adapters" / "adapters.md").read_text() == adapters_card(cards)


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_card_of_the_codec_tells_how_long_each_rate_point_was_trained(quality):
    _, facts = read_weights(codec_path("tic-s", quality), "the codec")
    told = f"| {quality} | {facts['lambda']} | {facts['steps']} | {facts['minutes']} |"
    assert told in (ROOT / "codecs" / "tic-s.md").read_text()


def test_all_that_ships_stays_below_24_mb():
    assert sum(path.stat().st_size for path in ROOT.rglob("*.safetensors")) < 24e6
