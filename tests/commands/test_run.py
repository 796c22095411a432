"""`lora-comp run` as a user types it: files, results and plots, or one line on stderr and exit code 2."""

import json
import os
from pathlib import Path

import pytest

from lora_comp import api, run
from lora_comp.commands.run import RunConfig, default_folder
from lora_comp.config import compose


@pytest.fixture
def over_folder(tmp_path, weights, cat):
    """Words for a run over the folder of the cat that is quick."""
    folder = tmp_path / "images"
    folder.mkdir()
    Path(cat).rename(folder / "cat.png")
    return [
        f"codec.weights={weights}",
        "task=human",
        "data=folder",
        f"data.path={folder}",
        "quality=2",
        "engine.steps=2",
        "engine.lr=0.02",
        f"out={tmp_path / 'out'}",
    ]


def test_a_run_leaves_files_results_and_plots(tmp_path, over_folder, capsys, everything_under):
    assert run.main(over_folder) == 0
    told = capsys.readouterr().out
    assert {"cat.png", "svd_lora", "bpp"} <= set(told.split())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(r["method"], r["quality"]) for r in results["records"]] == [("none", 2), ("svd_lora", 2)]
    assert any(r["adapted"] for r in results["records"])
    made = [name for name in everything_under(tmp_path / "out") if not name.startswith("files/")]
    assert made == ["files", "pictures.png", "records.jsonl", "results.json", "score.png"]


@pytest.mark.parametrize(
    "method, rows", [("none", ["none", "refined"]), ("[none,svd_lora]", ["none", "refined", "svd_lora"])]
)
def test_a_run_compares_refined_files_with_plain_ones(tmp_path, over_folder, method, rows):
    assert run.main([*over_folder, f"method={method}", "refine=12"]) == 0
    records = json.loads((tmp_path / "out" / "results.json").read_text())["records"]
    assert [r["method"] for r in records] == rows
    plain, refined = records[:2]
    assert refined["loss_after"] < refined["loss_before"] == plain["loss_after"]
    assert not refined["adapted"] and refined["file"] != plain["file"]  # a decoder sees a plain file
    assert (tmp_path / "out" / "pictures.png").exists()


@pytest.mark.parametrize(
    "words, folder",
    [
        ([], "cls-scenes-svd_lora"),
        (["quality=[4]", "engine=published", "engine.steps=3", "data.limit=2"], "cls-scenes-svd_lora"),
        (["task=[cls,det]", "method=[svd_lora,lora]"], "cls+det-scenes-svd_lora+lora"),
        (["codec=tic"], "cls-scenes-svd_lora-tic"),
    ],
)
def test_the_folder_of_a_run_bears_its_choices(words, folder):
    assert str(default_folder(compose(RunConfig, words, "run"))) == f"results/{folder}"


def test_no_two_runs_share_a_folder_by_default():
    a, b = ["data=folder", "data.path=a/val"], ["data=folder", "data.path=b/val"]
    runs = [
        *([], a, b, [*a, "data.split=test"], ["data.size=[64,96]"], ["data.seed=1"]),
        *(["task.network=a/net.onnx"], ["task.network=b/net.onnx"], ["task.network=flowers"]),
        *(["task=open", "task.network=a"], ["task=open", "task.network=[a,b]"]),
        *(["task=open", "task.network=a", "task.input=a.yaml"], ["task=open", "task.network=a", "task.layers=[1]"]),
        *(["task=[cls,det]", "task.shares=[2,1]"], ["task=[cls,det]", "task.det.network=a"], ["task=[cls,det]"]),
        *(
            ["roi=mask.png"],
            ["method.rank=2"],
            ["method=none"],
            ["refine=9"],
            ["codec=tic"],
            ["codec.weights=a.safetensors"],
        ),
    ]
    folders = [str(default_folder(compose(RunConfig, words, "run"))) for words in runs]
    assert len(set(folders)) == len(folders)
    assert folders[1].startswith("results/cls-folder-svd_lora-val-")
    assert all(len(Path(folder).parts) == 2 for folder in folders)


def test_one_folder_of_images_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    spelled = ["images", "./images", "images/", str(tmp_path / "images")]
    runs = [compose(RunConfig, ["data=folder", f"data.path={path}"], "run") for path in spelled]
    assert len(set(map(default_folder, runs))) == 1


def test_unreadable_images_are_counted_and_do_not_stop_a_run(tmp_path, over_folder, capsys):
    (tmp_path / "images" / "[bold].png").write_text("no image")
    (tmp_path / "images" / "a[").mkdir()
    (tmp_path / "images" / "a[" / "b].png").write_bytes(b"")
    (tmp_path / "images" / "a[" / "red].png").write_bytes((tmp_path / "images" / "cat.png").read_bytes())
    (tmp_path / "images" / "cat.png").rename(tmp_path / "images" / "a[" / "cat.png")
    (tmp_path / "images" / "[bold].png").rename(tmp_path / "images" / "a[" / "[bold].png")
    assert run.main(over_folder) == 0
    told = capsys.readouterr().out
    assert "2 unreadable images were skipped:" in told
    assert "a[/b].png" in told and "[bold].png" in told and "a[/red].png" in told
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["skipped"]) == 2


@pytest.mark.parametrize("out", [".", "results", "../images/out"])
def test_results_do_not_lie_among_the_images(tmp_path, over_folder, refused, monkeypatch, out):
    monkeypatch.chdir(tmp_path / "images")
    assert "the results would lie among the images" in refused(run.main, *over_folder[:-1], "data.path=.", f"out={out}")
    assert "name another folder with out=FOLDER" in refused(run.main, *over_folder[:-1], "data.path=.")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cat.png", "images"]


def test_a_name_as_long_as_a_file_system_takes_stops_no_run(tmp_path, over_folder):
    image = tmp_path / "images" / "cat.png"
    image.rename(image.with_name("x" * 251 + ".png"))
    assert run.main(over_folder) == 0
    assert len(list((tmp_path / "out" / "files").iterdir())) == 2


def test_a_run_in_which_no_image_can_be_read(tmp_path, over_folder, refused):
    (tmp_path / "images" / "cat.png").write_bytes(b"")
    assert "none of the images could be read" in refused(run.main, *over_folder)


@pytest.mark.parametrize(
    "words, says",
    [
        (["data.path=/nowhere"], "/nowhere is not a folder"),
        (["data.path=null"], "data.path must be a path, not null"),
        (["data.limit=0"], "data.limit must be"),
        (["data=scenes", "data.size=8"], "size of scenes"),
        (["data=scenes", "data.size=big"], "size of scenes"),
        (["data.split=7"], "data.split must be text"),
        (["quality=[]"], "quality must be"),
        (["quality=[1,9]"], "quality must be a number from 1 to 6, not 9"),
        (["task=nothing"], "task must be cls"),
        (["quality=1,2"], "a list is written quality=[1,2]"),
    ],
)
def test_a_setting_of_a_run_that_cannot_be_is_named(tmp_path, over_folder, refused, words, says):
    over_folder = [word for word in over_folder if not (words[0] == "data=scenes" and word.startswith("data"))]
    assert says in refused(run.main, *over_folder, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["/proc/out", "taken"])
def test_an_output_folder_that_cannot_be(tmp_path, over_folder, refused, out, everything_under):
    (tmp_path / "taken").write_text("a file")
    before = everything_under(tmp_path)
    assert "cannot make the folder" in refused(run.main, *over_folder, f"out={os.path.join(tmp_path, out)}")
    assert everything_under(tmp_path) == before


def test_a_disk_that_fills_up_during_a_run(tmp_path, over_folder, refused, monkeypatch, everything_under, fill_up):
    with monkeypatch.context() as patched:
        fill_up(patched)
        assert "No space left" in refused(run.main, *over_folder)
    assert everything_under(tmp_path / "out") == ["files"]


def test_ctrl_c_keeps_what_is_done_and_the_next_start_goes_on(tmp_path, over_folder, capsys, monkeypatch):
    encode_images, methods = api.encode_images, []

    def stop_when_adapting(images, codec, task, method, *rest, **kwargs):
        methods.append(method)
        if method is not None and len(methods) == 2:
            raise KeyboardInterrupt
        return encode_images(images, codec, task, method, *rest, **kwargs)

    monkeypatch.setattr(api, "encode_images", stop_when_adapting)
    assert run.main(over_folder) == 130
    assert capsys.readouterr().err.startswith("stopped; what is done is kept")
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["records"]) == 1
    assert run.main(over_folder) == 0
    assert len(methods) == 3
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["records"]) == 2


def test_several_methods_stand_in_one_table(tmp_path, over_folder):
    assert run.main([*over_folder, "method=[svd_lora,lora]"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["method"] for row in found["summary"]] == ["none", "svd_lora", "lora"]


def test_help_of_a_run_lists_what_can_be_set(capsys):
    assert run.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: lora-comp run" in out and "engine.steps=10" in out
