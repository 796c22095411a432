"""BD-rate, summary tables, plots and conventional codecs."""

import io
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from lora_comp.data import load_data
from lora_comp.errors import LoraCompError
from lora_comp.report.__main__ import main
from lora_comp.report.bdrate import bd_rate, pareto_front
from lora_comp.report.codecs import anchor_curve, classic_codecs, gains, measure, psnr, psnr_at, settings
from lora_comp.report.plots import caption, score_plot, side_by_side
from lora_comp.report.summary import bd_rate_lines, bd_rates, markdown, metric_names, score_name, summary, table
from lora_comp.weights import write_weights

SHARED = Path(os.environ.get("LORA_COMP_SHARED", Path(__file__).parents[2] / "shared"))
CURVE = [(0.1, 27.0), (0.2, 30.0), (0.4, 32.5), (0.8, 36.0)]

curves = st.lists(
    st.tuples(st.floats(0.01, 4), st.floats(20, 50)),
    min_size=2,
    max_size=6,
    unique_by=(lambda point: round(point[0], 3), lambda point: round(point[1], 3)),
).map(lambda points: list(zip(*(sorted(axis) for axis in zip(*points, strict=True)), strict=True)))


def record(image="a", method="none", quality=1, **values) -> dict:
    plain = {
        "image": image,
        "height": 256,
        "width": 256,
        "task": "cls",
        "method": method,
        "codec": "tic-v",
        "quality": quality,
        "bytes": 1000,
        "bpp": 0.125,
        "psnr": 28.0,
        "score": 0.5,
        "loss_before": 2.0,
        "loss_after": 1.0,
        "seconds_encode": 1.0,
        "seconds_decode": 0.1,
        "top1": 0.5,
        "feature_distance": 0.3,
    }
    return plain | values


def run(halved: bool = True) -> list[dict]:
    """Records in which the adapted codec needs half the rate for the same score."""
    return [
        record(
            method=method,
            quality=quality,
            bpp=bpp * scale,
            bytes=int(8192 * bpp * scale),
            psnr=level,
            score=level / 40,
            top1=level / 40,
            feature_distance=1 / level,
        )
        for method, scale in (("none", 1), ("svd_lora", 0.5 if halved else 1))
        for quality, (bpp, level) in enumerate(CURVE, start=1)
    ]


@given(curves)
def test_bd_rate_of_equal_curves_is_zero(curve):
    assert bd_rate(curve, curve) == pytest.approx(0, abs=1e-9)


@given(curves, st.floats(0.1, 10))
def test_scaling_all_rates_gives_that_bd_rate(curve, scale):
    scaled = [(rate * scale, quality) for rate, quality in curve]
    assert bd_rate(curve, scaled) == pytest.approx(100 * (scale - 1), abs=1e-6)


def test_half_the_rate_is_a_bd_rate_of_minus_fifty_percent():
    assert bd_rate(CURVE, [(rate / 2, quality) for rate, quality in CURVE]) == pytest.approx(-50, abs=1e-9)


def test_bd_rate_of_two_points_matches_the_closed_form():
    # The log rates differ by ln 2 at quality 30 and by 0 at 32: ln(2) / 2 on average.
    anchor = [(1.0, 30.0), (4.0, 32.0)]
    test = [(2.0, 30.0), (4.0, 32.0)]
    assert bd_rate(anchor, test) == pytest.approx(100 * (math.sqrt(2) - 1))


def test_bd_rate_does_not_depend_on_the_order_of_points():
    test = [(rate * 0.8, quality - 0.3) for rate, quality in CURVE]
    expected = bd_rate(CURVE, test)
    assert all(bd_rate(list(order), test) == pytest.approx(expected) for order in itertools.permutations(CURVE))


@pytest.mark.parametrize(
    "test",
    [
        [(0.1, 10.0), (0.2, 20.0)],  # another quality interval
        [(0.1, 36.0), (0.2, 40.0)],  # one common quality
        [(0.1, 30.0)],  # one point
        [(0.1, 30.0), (0.2, 30.0), (0.3, 29.0)],  # one point on the Pareto front
        [(0.1, 30.0), (0.2, math.inf)],
        [],
    ],
)
def test_curves_that_cannot_be_compared_give_nan(test):
    assert math.isnan(bd_rate(CURVE, test))


def test_dominated_points_are_left_out():
    noisy = [*CURVE, (0.5, 31.0), (0.4, 32.0), (0.9, 36.0)]
    assert pareto_front(noisy) == CURVE
    assert bd_rate(CURVE, noisy) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_that_are_not_positive_numbers_raise(rate):
    with pytest.raises(ValueError, match="bits per pixel"):
        bd_rate(CURVE, [(rate, 30.0), (1.0, 31.0)])


def test_summary_averages_over_images():
    rows = summary([record("a", bpp=0.1, psnr=20.0), record("b", bpp=0.3, psnr=40.0, height=8, width=8)])
    assert len(rows) == 1 and rows[0]["count"] == 2
    assert rows[0]["bpp"] == pytest.approx(0.2) and rows[0]["psnr"] == pytest.approx(30)
    assert "height" not in rows[0] and "image" not in rows[0]


def test_summary_has_a_row_per_setting_with_plain_first():
    rows = summary([record(method=method, quality=quality) for quality in (2, 1) for method in ("svd_lora", "none")])
    assert [(row["method"], row["quality"]) for row in rows] == [
        ("none", 1),
        ("none", 2),
        ("svd_lora", 1),
        ("svd_lora", 2),
    ]


def test_missing_values_are_left_out_of_the_mean():
    rows = summary([record("a", top1=1.0), record("b", top1=None), record("c", top1=0.0)])
    assert rows[0]["top1"] == 0.5 and rows[0]["count"] == 3


def test_the_score_is_named_after_its_metric_and_shown_once():
    rows = summary(run())
    assert score_name(rows) == "top1"
    assert metric_names(rows) == ["feature_distance"]
    assert markdown(rows).count("top-1") == 2  # its column, and the BD-rate


def test_bd_rates_compare_with_the_plain_codec():
    rates = bd_rates(summary(run()))
    assert rates == {"svd_lora": pytest.approx({"score": -50, "feature_distance": -50, "psnr": -50})}
    assert "-50.0 % at equal score (top-1)" in bd_rate_lines(summary(run()))[0]
    assert bd_rate_lines(summary([record(), record(method="svd_lora")])) == []


def test_rates_prints_a_row_per_run(tmp_path, capsys):
    paths = [tmp_path / name / "results.json" for name in ("closed", "open")]
    for path, halved in zip(paths, (True, False), strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps({"summary": summary(run(halved))}))
    assert main(["rates", *map(str, paths)]) == 0
    heading, _, closed, opened = capsys.readouterr().out.splitlines()
    assert "BD-rate at equal score" in heading and "at equal feature distance" in heading
    assert closed.startswith("| closed | cls | 1 | svd_lora | -50.0 % (top-1) |") and "-50.0 %" not in opened


def test_the_table_fits_a_terminal_and_shows_the_difference():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(summary(run())))
    text = console.export_text()
    assert "…" not in text
    assert "-50.0 %" in text and "svd_lora" in text


def test_markdown_rows_have_equal_numbers_of_cells():
    lines = [line for line in markdown(summary(run())).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    "records",
    [
        run(),
        [record()],
        [record(), record(method="svd_lora", bpp=0.1)],
        [record(quality=quality, bpp=quality / 10, score=1.0, top1=1.0, psnr=math.inf) for quality in (1, 2, 3)],
        [record() | {"codec": "tic"}, record()],
    ],
    ids=["full", "one record", "one rate point", "equal scores", "two codecs"],
)
def test_score_plot_handles_any_run(tmp_path, records):
    score_plot(summary(records), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > image.height
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10
    assert os.listdir(tmp_path) == ["plot.png"]


def test_score_plot_also_writes_vector_graphics(tmp_path):
    score_plot(summary(run()), tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize("height, width", [(1, 1), (256, 256), (3, 700), (700, 3), (33, 41), (900, 1300)])
def test_side_by_side_handles_any_image_size(tmp_path, height, width):
    original = torch.zeros(3, height, width)
    original[0] = 1  # red, green and blue: each must be visible
    plain, adapted = original.roll(1, 0), original.roll(2, 0)
    captions = ["a $ sign is no formula", caption(record()), caption(record(), answer="cat")]
    bpp = np.zeros((height, width))
    bpp[:, width // 2 :] = 0.5
    side_by_side(original, plain, adapted, captions, tmp_path / "side.png", bpp=bpp)
    with Image.open(tmp_path / "side.png") as image:
        shown = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert (shown == colour).all(axis=1).sum() >= 1000
    assert image.width < 3000 and image.height < 3000


def test_side_by_side_rejects_images_of_different_sizes(tmp_path):
    with pytest.raises(ValueError, match="one size"):
        side_by_side(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), torch.zeros(3, 4, 5), ["", "", ""], tmp_path / "a.png")


def test_caption_shows_bytes_bpp_psnr_and_answer():
    assert caption(record(), answer="cat") == "1,000 bytes, 0.125 bpp\nPSNR 28.00 dB\nanswer: cat"


def test_plotting_into_a_missing_folder_raises_a_one_line_error(tmp_path):
    with pytest.raises(LoraCompError, match=r"cannot write .*: No such file"):
        score_plot(summary(run()), tmp_path / "missing" / "plot.png")


def test_psnr_matches_the_closed_form():
    original = np.zeros((2, 2, 3), np.uint8)
    assert psnr(original, original + np.uint8(255)) == 0
    assert psnr(original, original + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(original, original) == math.inf


@pytest.mark.parametrize("name", classic_codecs())
def test_conventional_codecs_rise_in_rate_and_quality(name):
    image = load_data("photos")[0].image[:, :128, :192]
    curve = anchor_curve(name, [image])
    assert len(curve) == len(settings(name)) >= 8
    assert pareto_front(curve) == curve
    size, quality = measure(name, settings(name)[0], image)
    assert curve[0] == pytest.approx((8 * size / (128 * 192), quality))


@pytest.mark.parametrize("name", [name for name in classic_codecs() if name != "jpeg"])
def test_conventional_codecs_after_jpeg_have_a_lower_bd_rate(name):
    image = load_data("photos")[0].image[:, :256, :256]
    assert bd_rate(anchor_curve("jpeg", [image]), anchor_curve(name, [image])) < -10


@pytest.mark.parametrize("name", classic_codecs())
@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 37), (3, 37, 2)])
def test_conventional_codecs_accept_tiny_images(name, shape):
    image = torch.linspace(0, 1, math.prod(shape)).reshape(shape)
    size, quality = measure(name, settings(name)[-1], image)
    assert size > 0 and quality > 10


def test_anchor_curve_averages_bpp_and_psnr_over_images():
    small, large = torch.rand(3, 16, 16), torch.full((3, 64, 64), 0.4)
    both = anchor_curve("jpeg", [small, large])
    singly = [anchor_curve("jpeg", [image]) for image in (small, large)]
    assert np.allclose(both, np.mean(singly, axis=0))


def test_an_unknown_conventional_codec_raises():
    with pytest.raises(LoraCompError, match="this Pillow has no codec 'gif'"):
        anchor_curve("gif", [torch.rand(3, 8, 8)])


def test_psnr_at_interpolates_and_is_nan_outside_the_curve():
    assert psnr_at(CURVE, 0.2) == pytest.approx(30)
    assert 30 < psnr_at(CURVE, 0.3) < 32.5
    assert math.isnan(psnr_at(CURVE, 0.09)) and math.isnan(psnr_at(CURVE, 0.81))
    assert math.isnan(psnr_at(CURVE[:1], 0.1))


def test_gains_are_given_per_rate_point_and_anchor():
    first, second = gains([(0.2, 31.5), (9.0, 50.0)], {"jpeg": CURVE})
    assert first == {"jpeg": pytest.approx(1.5)} and math.isnan(second["jpeg"])


def test_codecs_command_counts_skipped_images(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        smooth = np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((8, 8, 1)))
        Image.fromarray(smooth.astype(np.uint8)).save(images / f"{i}.png")
    (images / "broken.png").write_text("not an image")
    assert main(["codecs", str(images), "--out", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["images"] == 2 and report["skipped"] == 1
    assert list(report["curves"]) == classic_codecs()
    assert len(report["records"]) == 2 * sum(len(settings(name)) for name in classic_codecs())
    assert "broken.png" in capsys.readouterr().out


@pytest.mark.skipif("avif444" not in classic_codecs(slow=True), reason="this Pillow writes no AVIF")
def test_codecs_command_compares_ours_with_those_named_and_with_published_curves(tmp_path, codec, capsys):
    y, x = np.mgrid[:48, :64]
    Image.fromarray(np.stack([2 * x, 3 * y, x + y], -1).astype(np.uint8)).save(tmp_path / "a.png")
    write_weights(tmp_path / "tic-v.safetensors", dict(codec.named_parameters()), {})
    (tmp_path / "curves.json").write_text(json.dumps({"hm": {"points": [[0.1, 5], [4, 60]]}, "jpeg": {"points": []}}))
    words = ["codec=tic-v", f"weights={tmp_path}/tic-v.safetensors", "against=[avif444,jpeg]"]
    words += [f"published={tmp_path}/curves.json", f"out={tmp_path}/out.json", "refine=2"]
    assert main(["codecs", str(tmp_path), *words]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["curves"]) == ["avif444", "jpeg", "tic-v"]
    assert [row["setting"] for row in report["curves"]["tic-v"]] == [1, 2, 3, 4, 5, 6]
    assert list(report["published"]) == ["hm", "jpeg"] and report["published"]["hm"] is not None
    assert "published curve" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no-such-folder"], "is not a folder"),
        ([".", "against=[png]"], "this Pillow has no codec 'png'; available are"),
        ([".", "codec=jpg"], "unknown codec 'jpg'"),
        ([".", "published=a.png"], "does not hold curves"),
        ([".", "codec=tic-v", "weights=w", "card=c.md"], "leave out weights="),
        ([".", "--out", "missing/out.json"], "cannot write"),
    ],
)
def test_codecs_command_reports_bad_input_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    assert main(["codecs", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.data
@pytest.mark.skipif(not (SHARED / "data" / "kodak").is_dir(), reason="LORA_COMP_SHARED has no data/kodak")
def test_jpeg_on_kodak_matches_published_psnr():
    kodak = load_data("folder", path=SHARED / "data" / "kodak")
    hard = [kodak[i - 1].image for i in (1, 5, 9, 13, 17, 21)]
    assert psnr_at(anchor_curve("jpeg", hard), 0.479) == pytest.approx(27.4, abs=0.1)
