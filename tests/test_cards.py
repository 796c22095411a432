"""Every shipped set of weights has a card that matches its metadata."""

import json

import pytest

from lora_comp.codecs import CODECS
from lora_comp.report import card
from lora_comp.report.card import adapters_card, codec_card, codec_scores, network_card
from lora_comp.weights import read_weights, write_weights
from lora_comp.zoo import ROOT, codec_path
from lora_comp.zoo.registry import _card_and_scores, digest

TRAINED = {"steps": 9, "minutes": 30, "hardware": "one core", "data": ["photos"]}


@pytest.mark.parametrize("name", ["scenes", "flowers", "scenes-det", "scenes-seg"])
def test_network_cards_match_their_metadata(name):
    facts = json.loads((ROOT / "networks" / f"{name}.json").read_text())
    assert (ROOT / "networks" / f"{name}.md").read_text() == network_card(facts)


def test_the_adapters_card_matches_their_metadata():
    cards = [read_weights(path, "the adapter")[1] for path in sorted((ROOT / "adapters").glob("*.safetensors"))]
    assert (ROOT / "adapters" / "adapters.md").read_text() == adapters_card(cards)


def test_the_codec_card_matches_its_metadata_and_scores():
    scores = json.loads((ROOT / "codecs" / "tic-v.json").read_text())
    assert (ROOT / "codecs" / "tic-v.md").read_text() == codec_card(scores)
    measured = {row["setting"]: row["sha256"] for row in scores["curve"]}
    assert measured == {quality: digest(codec_path("tic-v", None)) for quality in CODECS["tic-v"].qualities}, (
        "the scores are those of other weights: measure them again"
    )


def test_the_card_of_a_codec_for_all_rates_has_one_training_and_six_rate_points(tmp_path, monkeypatch):
    """As `lora-comp train what=codec codec=tic-v` and `lora-comp report codecs` write it."""
    monkeypatch.setattr(card, "codec_path", lambda name, rate_point: tmp_path / f"{name}.safetensors")
    path = tmp_path / "tic-v.safetensors"
    lambdas = [0.0018, 0.0035, 0.0067, 0.013, 0.025, 0.0483]
    write_weights(path, {}, {"codec": "tic-v", "quality": None, "lambdas": lambdas, **TRAINED})
    qualities = CODECS["tic-v"].qualities
    report = {
        "images": 24,
        "curves": {"tic-v": [{"setting": q, "bpp": q / 5, "psnr": 27.0 + q} for q in qualities]},
        "gain_db": [{"jpeg": 1.0} for _ in qualities],
        "bd_rate": {"tic-v": {"jpeg": -30.0}},
    }
    scores = codec_scores("tic-v", report, "kodak")
    text = codec_card(scores)
    assert "| 1 to 6 | 0.0018 to 0.0483 | 9 | 0.50 | one core | photos |" in text
    assert "| 6 | 1.200 | 33.00 | +1.00 |" in text
    (tmp_path / "tic-v.json").write_text(json.dumps(scores))
    assert _card_and_scores(path, digest(path))[1] == {"% rate over jpeg": -30.0}


def test_an_adapter_for_all_rates_is_listed_as_such():
    made = {"task": "human", "codec": "tic-v", "quality": None, "method": "svd_lora", "rank": 4, "alpha": 8, **TRAINED}
    assert "| human | tic-v | all | svd_lora | 4 | 8 | 9 | 0.50 | one core | photos | - | - |" in adapters_card([made])
