"""The benchmark table: a row per claim, our times and the peers', and the machine."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_comp.report.__main__ import main
from lora_comp.report.bench import read_speeds, three_digits
from lora_comp.report.plots import speed_plot

MACHINE = {
    "machine": "x86_64",
    "cpu": {"brand_raw": "A $2 Processor", "count": 2, "flags": ["avx2", "avx512f", "sse2"]},
    "torch": "2.9.0",
    "threads": 1,
}


def benchmark(group, kind, median, fastest=None):
    return {
        "group": group,
        "fullname": f"bench.py::test[{kind}]",
        "params": {"kind": kind} if kind else None,
        "stats": {"median": median, "min": fastest or median},
    }


RUN = [
    benchmark("rANS encoding", "ours", 0.000801),
    benchmark("rANS encoding", "CompressAI", 0.0151),
    benchmark("rANS encoding", "constriction", 0.0126),
    benchmark("training step", "ours", 0.3),
    benchmark("training step", "published", 1.2),
]


@pytest.fixture
def write(tmp_path):
    def write(benchmarks=RUN, machine=MACHINE):
        path = tmp_path / "b.json"
        path.write_text(
            json.dumps({"benchmarks": benchmarks, "machine_info": machine, "datetime": "2026-01-02T03:04:05+00:00"})
        )
        return path

    return write


def printed(capsys, path):
    assert main(["bench", str(path)]) == 0
    return capsys.readouterr().out.splitlines()


def test_each_claim_is_a_row_with_times_and_ratios_of_all_peers(write, capsys):
    assert printed(capsys, write()) == [
        "| benchmark | ours | peers | peers / ours |",
        "| --- | ---: | --- | ---: |",
        "| rANS encoding | 0.801 ms | CompressAI 15.1 ms, constriction 12.6 ms | 18.9, 15.7 |",
        "| training step | 0.300 s | published 1.20 s | 4.00 |",
        "",
        "Medians on A $2 Processor, AVX-512, 2 cores, torch 2.9.0, 1 thread, 2026-01-02.",
    ]


def test_the_machine_line_names_the_gpu(write, capsys):
    line = printed(capsys, write(machine={**MACHINE, "gpu": "A Graphics Card"}))[-1]
    assert line == "Medians on A $2 Processor, AVX-512, 2 cores, A Graphics Card, torch 2.9.0, 1 thread, 2026-01-02."


def test_claims_do_not_depend_on_the_order_of_kinds(write):
    claims = [(claim.name, claim.ours, dict(claim.peers)) for claim in read_speeds(write(RUN[::-1])).claims]
    assert sorted(claims) == [
        ("rANS encoding", 0.000801, {"CompressAI": 0.0151, "constriction": 0.0126}),
        ("training step", 0.3, {"published": 1.2}),
    ]


@pytest.mark.parametrize(
    "ours, peer, cells",
    [
        (2e-7, 4e-6, "0.200 us | torch 4.00 us | 20.0"),
        (3.3e-8, 4e-8, "0.0330 us | torch 0.0400 us | 1.21"),
        (0.5, 0.25, "500 ms | torch 250 ms | 0.500"),
        (1.5, 1850, "1.50 s | torch 1,850 s | 1,230"),
    ],
)
def test_a_row_uses_the_unit_of_its_slowest_time(write, capsys, ours, peer, cells):
    lines = printed(capsys, write([benchmark("a", "ours", ours), benchmark("a", "torch", peer)]))
    assert lines[2] == f"| a | {cells} |"


@given(st.floats(1e-9, 1e9))
def test_three_digits_round_within_half_a_percent(value):
    text = three_digits(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.0051)
    assert "e" not in text


def test_groups_without_a_peer_are_listed_and_tests_without_a_kind_are_not(write, capsys):
    unmatched = [benchmark("kernels", None, 1.0), benchmark("layer", "ours", 1.0), benchmark("block", "PEFT", 1.0)]
    lines = printed(capsys, write([*unmatched, *RUN]))
    assert lines[-1] == "Left out (nothing to compare in this run): layer; block."
    assert not any("kernels" in line for line in lines)


def test_noisy_claims_are_listed(write, capsys):
    lines = printed(capsys, write([*RUN[:-1], benchmark("training step", "published", 1.2, fastest=0.7)]))
    assert lines[-1] == "Noisy (median > 1.25x the fastest round): training step."


def test_the_machine_line_needs_only_the_architecture(write, capsys):
    assert printed(capsys, write(machine={"machine": "arm64"}))[-1] == "Medians on arm64, 2026-01-02."


def test_the_machine_line_names_processor_time(write, capsys):
    timed = [run | {"options": {"timer": "process_time"}} for run in RUN]
    assert printed(capsys, write(timed))[-1].endswith(", 2026-01-02, processor time.")


def test_out_receives_the_table_and_a_plot(write, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert main(["bench", str(write()), "--out", str(out)]) == 0
    assert (out / "bench.md").read_text() == capsys.readouterr().out
    assert sorted(os.listdir(out)) == ["bench.md", "bench.png"]
    with Image.open(out / "bench.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


@pytest.mark.parametrize("ratios", [[1.0], [0.2, 0.9], [0.5, 1, 3, 1e5], [1.01] * 40])
def test_speed_plot_handles_any_ratios(write, tmp_path, ratios):
    measured = [
        benchmark(f"claim $ {i}", kind, seconds)
        for i, ratio in enumerate(ratios)
        for kind, seconds in (("ours", 1.0), ("a peer", ratio))
    ]
    speed_plot(read_speeds(write(measured)), tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.width > 1000


def error_of(capsys, *arguments):
    assert main(["bench", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        "[]",
        "{}",
        "3",
        '{"benchmarks": {}}',
        '{"benchmarks": [1], "machine_info": {}, "datetime": ""}',
        json.dumps({"records": []}),
        json.dumps({"benchmarks": RUN}),
    ],
)
def test_other_files_raise_a_one_line_error(tmp_path, capsys, text):
    (tmp_path / "b.json").write_text(text)
    assert "is not a JSON file of pytest-benchmark" in error_of(capsys, tmp_path / "b.json")


def test_a_missing_file_or_a_folder_raises_a_one_line_error(tmp_path, capsys):
    assert "No such file" in error_of(capsys, tmp_path / "b.json")
    assert "Is a directory" in error_of(capsys, tmp_path)


@pytest.mark.parametrize("benchmarks", [[], RUN[1:3], RUN[:1], [benchmark("a", None, 1.0)]])
def test_a_run_without_a_comparison_raises_a_one_line_error(write, capsys, benchmarks):
    assert "no group of benchmarks with kind=ours beside a peer" in error_of(capsys, write(benchmarks))


def test_a_kind_twice_in_a_group_raises(write, capsys):
    assert "'training step' has two benchmarks of kind=ours" in error_of(capsys, write([*RUN, RUN[3]]))


@pytest.mark.parametrize("median", [0, -1.0, float("nan"), float("inf"), "x", None])
def test_times_that_are_not_positive_numbers_raise(write, capsys, median):
    broken = {**RUN[0], "stats": {"median": median, "min": median}}
    assert "is not a JSON file of pytest-benchmark" in error_of(capsys, write([broken, *RUN[1:]]))


def test_an_unwritable_out_raises_a_one_line_error(write, capsys):
    path = write()
    assert "cannot make the folder" in error_of(capsys, path, "--out", path / "x")
