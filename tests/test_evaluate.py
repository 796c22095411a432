"""Evaluation on a data set: records match the files on disk, and an interrupted run resumes."""

import io
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from rich.progress import Progress

import lora_comp as lc
from lora_comp import api, evaluate
from lora_comp.data import Sample, write_image
from lora_comp.methods import FitSettings
from lora_comp.tasks.human import psnr

DESIGN = {
    "image",
    "height",
    "width",
    "task",
    "method",
    "codec",
    "quality",
    "bytes",
    "bpp",
    "psnr",
    "score",
    "loss_before",
    "loss_after",
    "seconds_encode",
    "seconds_decode",
}


@pytest.fixture
def encoded(monkeypatch):
    """The images that have been encoded so far."""
    calls, encode_images = [], api.encode_images

    def count(images, *args, **kwargs):
        calls.extend(images)
        return encode_images(images, *args, **kwargs)

    monkeypatch.setattr(api, "encode_images", count)
    return calls


@pytest.fixture
def folder(tmp_path, make_image):
    for i, size in enumerate([(40, 64), (33, 47), (64, 20)]):
        (tmp_path / "images").mkdir(exist_ok=True)
        write_image(tmp_path / "images" / f"{i}.png", make_image(*size))
    return tmp_path / "images"


@pytest.fixture
def start(codec, human, folder, tmp_path):
    """Start or resume a run on the folder of images."""

    def start(task=human, method="svd_lora", steps=1, data=None, qualities=(2,), seed=0, batch=1):
        log = io.StringIO()
        with Progress(console=Console(file=log, width=60)) as progress:
            methods = [lc.load_method(name, codec) for name in method.split("+") if name != "none"]
            records = evaluate.evaluate(
                data or lc.load_data("folder", folder),
                [evaluate.Point(codec, [None, *methods])] * len(qualities),
                task,
                FitSettings(steps, 0.02, seed),
                tmp_path / "out",
                progress,
                batch,
            )
        records.log = log.getvalue()
        return records

    return start


def results(tmp_path):
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_records_match_their_files(start, tmp_path, codec, human, folder):
    start()
    records = results(tmp_path)["records"]
    assert [(r["image"], r["method"]) for r in records] == [
        (f"{i}.png", method) for i in range(3) for method in ("none", "svd_lora")
    ]
    for record in records:
        assert record.keys() >= DESIGN
        data = (tmp_path / "out" / record["file"]).read_bytes()
        original = lc.data.read_image(folder / record["image"])
        decoded = lc.decode(data, codec)
        assert record["bytes"] == len(data)
        assert record["bpp"] == 8 * len(data) / (record["height"] * record["width"])
        assert record["psnr"] == record["score"] == psnr(decoded, original)
        assert record["adapted"] == (lc.info(data)["method"] != "none")
        assert record["loss_after"] <= record["loss_before"]
    assert len(list((tmp_path / "out").rglob("*.lcz"))) == len({r["file"] for r in records}) == 6


def test_the_summary_has_a_row_per_method_and_quality(start, tmp_path):
    start()
    stored = results(tmp_path)
    assert [(row["method"], row["quality"], row["count"]) for row in stored["summary"]] == [
        ("none", 2, 3),
        ("svd_lora", 2, 3),
    ]
    plain = [r["bytes"] for r in stored["records"] if r["method"] == "none"]
    assert stored["summary"][0]["bytes"] == sum(plain) / 3


def test_several_methods_share_one_summary(start, tmp_path, encoded):
    start(method="svd_lora")
    start(method="svd_lora+lora")
    stored = results(tmp_path)
    assert [(row["method"], row["count"]) for row in stored["summary"]] == [("none", 3), ("svd_lora", 3), ("lora", 3)]
    assert len(encoded) == 9 and len({r["file"] for r in stored["records"]}) == 9


def test_a_second_start_encodes_nothing(start, tmp_path, encoded):
    start()
    before = results(tmp_path)
    assert len(encoded) == 6
    start()
    assert len(encoded) == 6
    assert results(tmp_path) == before


@pytest.mark.parametrize("change", [{"steps": 2}, {"seed": 1}, {"method": "lora"}])
def test_other_settings_encode_again(start, encoded, change):
    start()
    start(**change)
    assert len(encoded) == 9  # the plain files are reused


def test_returning_to_earlier_settings_encodes_again(start, tmp_path, codec, folder):
    for steps in (1, 3, 1):
        start(steps=steps)
        for record in results(tmp_path)["records"]:
            decoded = lc.decode((tmp_path / "out" / record["file"]).read_bytes(), codec)
            assert record["psnr"] == psnr(decoded, lc.data.read_image(folder / record["image"]))


def test_a_changed_image_is_encoded_again(start, folder, make_image, encoded):
    start()
    write_image(folder / "1.png", make_image(33, 47).flip(2))
    start()
    assert len(encoded) == 6 + 2


def test_a_deleted_or_replaced_file_is_encoded_again(start, tmp_path, encoded):
    start()
    first, second, *_ = results(tmp_path)["records"]
    (tmp_path / "out" / first["file"]).unlink()
    (tmp_path / "out" / second["file"]).write_bytes(b"other")
    start()
    assert len(encoded) == 6 + 2
    assert (tmp_path / "out" / first["file"]).stat().st_size == first["bytes"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_resumes(start, tmp_path, encoded, monkeypatch, human, stop):
    measure = human.measure

    def stop_at_second(decoded, sample):
        if sample.name == "1.png":
            raise stop
        return measure(decoded, sample)

    with monkeypatch.context() as patched, pytest.raises(stop):
        patched.setattr(human, "measure", stop_at_second)
        start()
    assert [r["image"] for r in results(tmp_path)["records"]] == ["0.png"] * 2
    done = len(encoded)
    start()
    assert len(encoded) == done + 4
    assert len(results(tmp_path)["records"]) == 6


@pytest.mark.parametrize("cut", [2, 20, 200])
def test_an_incomplete_journal_line_loses_one_record(start, tmp_path, encoded, cut):
    start()
    journal = tmp_path / "out" / "records.jsonl"
    journal.write_text(journal.read_text()[:-cut])
    start()
    assert len(encoded) == 7
    start()
    assert len(encoded) == 7
    assert len(results(tmp_path)["records"]) == 6


def test_unreadable_images_are_skipped_and_listed(start, tmp_path, folder):
    (folder / "0.png").write_text("no image")
    (folder / "[b].png").write_bytes(b"")
    records = start(qualities=(2,))
    skipped = results(tmp_path)["skipped"]
    assert [r["image"] for r in records.requested[::2]] == ["1.png", "2.png"]
    assert len(skipped) == 2
    assert str(folder / "0.png") in skipped[0] and str(folder / "[b].png") in skipped[1]
    assert records.log.count("skipped: ") == 2
    assert str(folder / "[b].png") in records.log


class Named(list):
    """Images in memory."""

    name, classes = "named", ()


def test_batches_hold_consecutive_images_of_one_size():
    sizes = [(2, 3)] * 5 + [(3, 2)] + [(2, 3)]
    images = [Sample(str(i), torch.zeros(3, *size)) for i, size in enumerate(sizes)]
    assert [[s.name for s in batch] for batch in evaluate.batches(images, 2)] == [
        ["0", "1"],
        ["2", "3"],
        ["4"],
        ["5"],
        ["6"],
    ]


def test_records_do_not_depend_on_the_batch_size(start, tmp_path, make_image, encoded):
    """A run may also resume with another batch size."""
    data = Named(Sample(str(i), make_image(60, 70 + 50 * i)[:, :, -64:]) for i in range(3))
    start(data=data, batch=2)
    together = results(tmp_path)["records"]
    assert [(r["image"], r["method"]) for r in together] == [
        ("0", "none"),
        ("1", "none"),
        ("0", "svd_lora"),
        ("1", "svd_lora"),
        ("2", "none"),
        ("2", "svd_lora"),
    ]
    (tmp_path / "out" / together[3]["file"]).unlink()
    start(data=data, batch=3)
    assert len(encoded) == 6 + 1 and torch.equal(encoded[-1], data[1].image)
    (tmp_path / "out" / "records.jsonl").unlink()
    start(data=data)
    alone = {(r["image"], r["method"]): r for r in results(tmp_path)["records"]}
    assert len(encoded) == 6 + 1 + 6
    for record in together:
        other = alone[record["image"], record["method"]]
        assert record.keys() == other.keys() and record["file"] == other["file"]
        assert record["loss_after"] == pytest.approx(other["loss_after"], rel=3e-3)


def test_similar_names_have_separate_files(start, tmp_path, make_image):
    names = ["a/b", "a_b", "a/b.png", "a__b", "c/a/b"]
    data = Named(Sample(name, make_image(32, 20 + i)) for i, name in enumerate(names))
    start(data=data, method="none")
    records = results(tmp_path)["records"]
    assert len({r["file"] for r in records}) == len(names)
    for record in records:
        assert lc.info((tmp_path / "out" / record["file"]).read_bytes())["width"] == record["width"]


@given(
    st.lists(
        st.one_of(st.text("ab.~/\\\\ é漢", min_size=1, max_size=300), st.sampled_from(["..", "/", "a" * 255])),
        min_size=1,
    ),
    st.text("a+", max_size=300),
)
def test_every_name_has_a_file_inside_the_folder(parts, what):
    name = "/".join(parts).replace("\0", "_")
    path = evaluate.file_of(name, what)
    assert path.parts[0] == "files" and ".." not in path.parts and not path.is_absolute()
    assert all(len(os.fsencode(part)) <= 255 for part in path.parts)


def test_names_too_long_for_a_file_system_are_cut_and_stay_apart(start, tmp_path, make_image):
    long = "x" * 244
    names = [f"{long}.png", f"{long}.jpg", f"{long}/{long}.png", "../../out.png", "/etc/out.png", "é" * 120]
    start(data=Named(Sample(name, make_image(32, 20 + i)) for i, name in enumerate(names)), method="none")
    records = results(tmp_path)["records"]
    assert [r["image"] for r in records] == names
    for record in records:
        assert lc.info((tmp_path / "out" / "files" / ".." / record["file"]).read_bytes())["width"] == record["width"]
    assert len(list((tmp_path / "out" / "files").rglob("*.lcz"))) == len(names)


def test_classification_of_unlabelled_images_scores_agreement(start, tmp_path, cls):
    start(task=cls)
    for record in results(tmp_path)["records"]:
        assert record["score"] == record["agreement"] in (0, 1)
        assert "top1" not in record
        assert record["feature_distance"] >= 0


def test_images_of_all_modes_are_evaluated(start, tmp_path, folder):
    for path in folder.iterdir():
        path.unlink()
    Image.new("L", (1, 1), 99).save(folder / "grey.png")
    Image.new("P", (20, 10)).save(folder / "palette.gif")
    Image.new("RGBA", (9, 33), (9, 9, 9, 9)).save(folder / "transparent.png")
    Image.new("I;16", (30, 30), 40000).save(folder / "deep.png")
    start(method="none")
    sizes = {r["image"]: (r["height"], r["width"]) for r in results(tmp_path)["records"]}
    assert sizes == {"grey.png": (1, 1), "palette.gif": (10, 20), "transparent.png": (33, 9), "deep.png": (30, 30)}


def test_record_keys_distinguish_images_of_the_same_name(codec, human, make_image):
    settings = FitSettings(1, 0.02, 0)
    method = lc.load_method("svd_lora", codec)
    keys = [
        evaluate.record_key(sample, codec, human, method, settings)
        for sample in (
            Sample("a", make_image()),
            Sample("a", make_image().flip(1)),
            Sample("a", make_image(), label=1),
            Sample("b", make_image()),
        )
    ]
    assert len(set(keys)) == 4
    assert evaluate.record_key(Sample("a", torch.clone(make_image())), codec, human, method, settings) == keys[0]
