"""A size or a PSNR that is asked for: the file that meets it, the limit that none exceeds, and what is refused."""

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lora_comp as lc
from lora_comp import cli
from lora_comp.codecs import at_quality
from lora_comp.commands.run import RunConfig, targets_of
from lora_comp.config import compose
from lora_comp.data import write_image
from lora_comp.errors import LoraCompWarning
from lora_comp.report.summary import markdown, summary
from lora_comp.target import FITS, Search, Target, last_below, nearer_means, nearest
from lora_comp.tasks.human import psnr
from lora_comp.weights import write_weights


def imagined(target, change=lambda quality: 1.0, quality=6.0):
    """The search for a codec whose files double in size with every quality, and the sizes that its fits had.

    change: the size of an adapted file over that of the plain one; latents moved by 1 halve it.
    """
    fits = []

    def plain(quality):
        return bytes(round(1000 * 2**quality))

    def fit(quality):
        size = len(plain(quality)) * change(quality)
        data = search.trim(lambda by: bytes(round(size * 2**-by)))
        fits.append(len(data))
        return SimpleNamespace(data=data, quality=quality)

    search = Search(target, (1, 6), quality, 80_000, plain, lambda data: 10 * math.log10(len(data)))
    return search, fit, fits


@given(st.sets(st.integers(-1000, 1000), min_size=1, max_size=90).map(sorted))
def test_the_search_is_right_wherever_a_rising_function_crosses_zero(values):
    last = 16 + len(values) - 1
    below = last_below(lambda place: values[place - 16], 16, last)
    assert below == 15 + sum(value <= 0 for value in values)
    found = nearest(lambda place: values[place - 16], 16, last)
    assert abs(values[found - 16]) == min(map(abs, values))


def test_the_search_takes_few_files():
    taken = []
    last_below(lambda place: taken.append(place) or 1.02**place - 2, 16, 96)
    assert len(taken) <= 6


@pytest.mark.parametrize("change", [lambda q: 1.0, lambda q: 0.5, lambda q: 0.6 + 0.05 * q, lambda q: 1.2])
@pytest.mark.parametrize(
    "target", [Target("bytes", 12_345), Target("bpp", 1.5), Target("psnr", 43.21), Target("bpp", 1.5, 15_000)]
)
def test_an_adapted_file_meets_the_target_in_few_fits(change, target):
    search, fit, fits = imagined(target, change)
    size = len(search.of_fits(fit).data)
    wanted = {"bytes": 12_345, "bpp": 15_000, "psnr": 10**4.321}[target.kind]
    assert size == pytest.approx(wanted, rel=0.005)
    assert size <= (target.max_bytes or size)
    assert len(fits) <= 2


@given(st.floats(0.3, 1.5), st.floats(-0.1, 0.1), st.integers(700, 80_000), st.floats(1, 6))
def test_no_adapted_file_exceeds_the_limit(factor, slope, most, quality):
    search, fit, fits = imagined(
        Target(max_bytes=most), lambda q: max(factor + slope * q, 0.1), round(16 * quality) / 16
    )
    coded = search.of_fits(fit)
    assert len(fits) <= FITS
    if coded is None:
        assert min(fits) > most
    else:
        assert len(coded.data) == max(size for size in fits if size <= most)


@pytest.fixture(scope="module")
def image(make_image):
    return make_image(200, 228)[:, :64, -128:]


def at(codec, quality, image):
    return lc.encode(image, at_quality(codec, quality), method="none")


@pytest.mark.parametrize("kind", ["bytes", "bpp"])
def test_a_plain_file_is_that_of_the_quality_nearest_to_the_target(codec, image, kind):
    asked = 2000 if kind == "bytes" else 8 * 2000 / (64 * 128)
    coded = lc.encode(image, codec, method="none", **{kind: asked})
    assert coded.data == at(codec, coded.quality, image).data
    nearby = [len(at(codec, coded.quality + step / 16, image).data) for step in (-1, 0, 1)]
    assert min(nearby, key=lambda size: abs(math.log(size / 2000))) == len(coded.data)
    assert len(coded.data) == pytest.approx(2000, rel=0.02)


def test_a_file_never_exceeds_max_bytes(codec, image):
    highest, fourth = at_quality(codec, 6), at(codec, 4, image)
    best = lc.encode(image, highest, method="none", max_bytes=2000)
    assert len(best.data) <= 2000 < len(at(codec, best.quality + 1 / 16, image).data)
    beside = lc.encode(image, highest, method="none", bytes=5000, max_bytes=2000)
    assert beside.data == best.data
    assert lc.encode(image, at_quality(codec, 4), method="none", max_bytes=len(fourth.data)).data == fourth.data
    with pytest.raises(lc.LoraCompError, match=r"max_bytes=500: the smallest file of this image has \d+ bytes"):
        lc.encode(image, highest, method="none", max_bytes=500)


@pytest.mark.parametrize("asked, quality", [(100, 1), (10**6, 6)])
def test_of_what_cannot_be_met_the_nearest_file_comes_with_a_warning(codec, image, asked, quality):
    end = at(codec, quality, image)
    line = rf"bytes={asked}: the nearest file has {len(end.data)} bytes, at quality {quality}"
    with pytest.warns(LoraCompWarning, match=line):
        coded = lc.encode(image, codec, method="none", bytes=asked)
    assert coded.data == end.data


def test_an_adapted_file_is_nearer_than_a_sixteenth(codec, human, image):
    with warnings.catch_warnings():
        warnings.simplefilter("error", LoraCompWarning)
        coded = lc.encode(image, codec, human, steps=2, bytes=2000, max_bytes=2010)
    assert coded.method == "svd_lora"
    assert 1980 <= len(coded.data) <= 2010
    weight = human.weight(coded.quality)
    distortion = (lc.decode(coded.data, codec) - image).square().mean().item()
    assert coded.loss_after == pytest.approx(weight * distortion + coded.bpp, rel=1e-5)
    plain = lc.encode(image, codec, method="none", bytes=2000, max_bytes=2010)
    distortion = (lc.decode(plain.data, codec) - image).square().mean().item()
    assert coded.loss_before == pytest.approx(weight * distortion + plain.bpp, rel=1e-5)
    assert coded.loss_after < coded.loss_before


def test_a_refined_file_meets_a_size(trained_codec, human, make_image):
    image = make_image(240, 228)[:, :128, 100:]
    plain, refined = (
        lc.encode(image, trained_codec, human, "none", refine=steps, bytes=1000, max_bytes=1010) for steps in (0, 40)
    )
    assert all(980 <= len(coded.data) <= 1010 for coded in (plain, refined))
    assert psnr(lc.decode(refined.data), image) > psnr(lc.decode(plain.data), image) + 0.05


@torch.no_grad()
def test_latents_move_towards_their_means_and_a_refined_z_stays_beside_that_of_y(codec, image):
    latents = codec.latents(image[None])
    refined = {"y": latents["y"], "z": latents["z"] + 0.3}
    moved = nearer_means(codec, refined, 0.1)
    means = codec.rate(refined).predictions["means"]
    assert ((moved["y"] - means).abs() <= (latents["y"] - means).abs()).all()
    torch.testing.assert_close(moved["z"], codec.latents_from(moved["y"])["z"] + 0.3)
    assert nearer_means(codec, refined, 0) is refined


def test_every_image_of_a_batch_meets_the_target_with_its_region(codec, human, image):
    images = [image, image.flip(2) / 2]
    masks = [torch.zeros(64, 128).index_fill_(1, torch.arange(start, start + 40), 1) for start in (0, 80)]
    together = lc.encode_batch(images, codec, human, steps=1, bpp=1.6, rois=masks)
    assert len({coded.quality for coded in together}) == 2
    for coded, one, mask in zip(together, images, masks, strict=True):
        assert coded.bpp == pytest.approx(1.6, rel=0.025)
        assert coded.data == lc.encode(one, codec, human, steps=1, bpp=1.6, roi=mask).data


@pytest.mark.parametrize("method", ["none", "svd_lora"])
def test_the_decoded_image_has_the_psnr_that_is_asked_for(trained_codec, human, image, method):
    coded = lc.encode(image, trained_codec, human, method, steps=2, psnr=30)
    assert psnr(lc.decode(coded.data, trained_codec), image) == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize(
    "given, line",
    [
        ({"bpp": 1, "psnr": 30}, "bpp and psnr exclude each other: set one"),
        ({"bytes": 0}, "bytes must be a number > 0, not 0"),
        ({"max_bytes": float("nan")}, "max_bytes must be a number > 0, not nan"),
    ],
)
def test_a_target_that_cannot_be_is_refused(codec, image, given, line):
    with pytest.raises(lc.LoraCompError, match=line):
        lc.encode(image, codec, method="none", **given)


def test_a_codec_of_fixed_rates_has_no_targets(fixed_rate_codec, image):
    line = "bpp=0.25 needs any quality, which codec=tic-v or method=calice has; tic has quality 1, 2, 3 or 4"
    with pytest.raises(lc.LoraCompError, match=line):
        lc.encode(image, fixed_rate_codec, method="none", bpp=0.25)


# the commands


@pytest.fixture
def words(codec, tmp_path, image):
    """Of a command whose codec is tic-v."""
    write_weights(tmp_path / "tic-v.safetensors", dict(codec.named_parameters()), {})
    (tmp_path / "images").mkdir()
    for name, one in (("a", image), ("b", image.flip(2) / 2)):
        write_image(tmp_path / "images" / f"{name}.png", one)
    return ["codec=tic-v", f"codec.weights={tmp_path / 'tic-v.safetensors'}", "task=human", "engine.steps=1"]


def test_encode_takes_a_size_and_says_what_it_found(tmp_path, words, capsys):
    command = ["encode", str(tmp_path / "images" / "a.png"), str(tmp_path / "a.lcz"), *words, "method=none"]
    assert cli.command([*command, "bytes=2000"]) == 0
    found = lc.info(tmp_path / "a.lcz")
    assert found["bytes"] == pytest.approx(2000, rel=0.02)
    assert f"quality {found['quality']:g}, none" in capsys.readouterr().out
    assert cli.command([*command, "quality=3", "max_bytes=1500"]) == 0
    assert lc.info(tmp_path / "a.lcz")["bytes"] <= 1500
    assert capsys.readouterr().err == ""
    assert cli.command([*command, "bpp=0.01"]) == 0
    [note] = capsys.readouterr().err.splitlines()
    assert note.startswith("note: bpp=0.01: the nearest file has 1.")


@pytest.mark.parametrize("name", ["encode a.png a.lcz", "run"])
def test_a_quality_excludes_a_size(capsys, name):
    assert cli.command([*name.split(), "quality=2", "bpp=0.5"]) == 2
    assert capsys.readouterr().err == "error: quality and bpp exclude each other: set one\n"


def test_a_run_has_a_row_for_each_target(tmp_path, words, capsys):
    command = ["run", *words, "data=folder", f"data.path={tmp_path / 'images'}", f"out={tmp_path / 'out'}"]
    assert cli.command([*command, "bpp=[2.4,1.6]"]) == 0
    assert "bpp=1.6" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = [(row["method"], row["target"], row["count"]) for row in results["summary"]]
    assert rows == [(method, f"bpp={bpp}", 2) for method in ("none", "svd_lora") for bpp in (1.6, 2.4)]
    for record in results["records"]:
        assert record["bpp"] == pytest.approx(float(record["target"][4:]), rel=0.025)
        assert record["quality"] == lc.info(tmp_path / "out" / record["file"])["quality"]
    assert len({record["quality"] for record in results["records"] if record["method"] == "none"}) == 4
    table = markdown(results["summary"]).splitlines()
    assert [line.split()[1] for line in table if line.startswith("| bpp")] == ["bpp=1.6"] * 2 + ["bpp=2.4"] * 2
    assert summary(results["records"]) == results["summary"]
    assert results["notes"] == []
    journal = (tmp_path / "out" / "records.jsonl").read_text()
    assert cli.command([*command, "bpp=[1.6]"]) == 0  # goes on with what is there
    assert (tmp_path / "out" / "records.jsonl").read_text() == journal


def test_a_run_counts_the_files_that_no_quality_leads_to(tmp_path, words, capsys):
    command = ["run", *words, "method=none", "data=folder", f"data.path={tmp_path / 'images'}", f"out={tmp_path}/out"]
    assert cli.command([*command, "bytes=[100]"]) == 0
    line = "bytes=100: 2 of 2 files are not near, since no quality of the codec is nearer"
    assert capsys.readouterr().err == f"note: {line}\n"
    assert json.loads((tmp_path / "out" / "results.json").read_text())["notes"] == [line]


def test_rate_points_are_of_one_kind():
    config = compose(RunConfig, ["max_bytes=[1500,3000]"], "run")
    assert targets_of(config) == {f"max_bytes={n}": Target(max_bytes=n) for n in (1500, 3000)}
    with pytest.raises(lc.LoraCompError, match="bpp and max_bytes exclude each other"):
        targets_of(compose(RunConfig, ["max_bytes=[1500]", "bpp=1"], "run"))
