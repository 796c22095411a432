"""What hostile files can do: nothing. The corpus and a few hundred changed files, without a fuzzer."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import targets
from mutations import KINDS, Mutants, split
from targets import CORPUS, corpus

import lora_comp as lc
from lora_comp import cli

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", targets.TARGETS)
def test_every_target_stands_every_file_of_the_corpus(target):
    for data in corpus().values():
        targets.TARGETS[target](data)


def test_valid_files_decode_wherever_they_were_made():
    """Where this fails after a change of the format or of the weights: python tests/fuzz/make_corpus.py."""
    said = {name: targets.image(data) for name, data in corpus("valid/*").items()}
    assert len(said) >= 15 and set(said.values()) == {"read"}, said


def test_payloads_are_read_or_refused():
    said = {name.split("/")[1]: targets.payload(data) for name, data in corpus("payload/*").items()}
    assert [said[name] for name in ("empty", "small", "wide", "huge")] == ["read"] * 4
    assert said["step-31"] == "the adapter's part of the file is damaged"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("wide", "declares 268435456x16 pixels, more than the 268435456 allowed"),
        ("thin", "declares 16777216x16 pixels, more than the 268435456 allowed .where a side counts as 64"),
        ("largest", "end early"),  # as many pixels as may be, behind the z of 16x16
        ("long-z", "cut short: .* its header declares 34359738"),
        ("rank-0", "names an adapter that cannot be"),
        ("unknown-adapter", "needs the adapter 80616263"),
        ("unknown-codec", "written with other weights"),
        ("method-duic", "method 'duic', which this lora_comp cannot decode"),
        ("other-symbols", "decoded latents differ"),
    ],
)
def test_forged_files_are_refused_for_what_is_wrong(file, message):
    assert re.search(message, targets.image((CORPUS / "forged" / f"{file}.lcz").read_bytes()))


def test_the_largest_image_is_what_the_user_says(tmp_path, capsys):
    file, image = CORPUS / "valid" / "none-100x70-q4.lcz", tmp_path / "image.png"
    assert lc.decode(file.read_bytes(), max_pixels=7000).shape == (3, 100, 70)
    with pytest.raises(lc.BitstreamError, match="70x100 pixels, more than the 6999"):
        lc.decode(file.read_bytes(), max_pixels=6999)
    assert cli.command(["decode", str(file), str(image), "max_pixels=6999"]) == 2
    assert "more than the 6999 allowed" in capsys.readouterr().err and not image.exists()
    assert cli.command(["decode", str(file), str(image), "max_pixels=7000"]) == 0 and image.exists()
    assert cli.command(["decode", str(file), str(image), "max_pixels=many"]) == 2
    assert capsys.readouterr().err == "error: max_pixels must be a whole number, not 'many'\n"


def test_info_tells_of_an_image_of_any_size(capsys):
    assert cli.command(["info", str(CORPUS / "forged" / "wide.lcz")]) == 0
    assert "268435456" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["huge-y", "large-y", "huge-z", "large-z"])
def test_symbols_of_any_size_give_an_image(file):
    """Whose every sample is a number in [0, 1]: that is checked by the target."""
    assert targets.image((CORPUS / "forged" / f"{file}.lcz").read_bytes()) == "read"


def test_changed_files_are_told_apart_by_number():
    files = list(corpus("valid/*").values())
    some = [Mutants(files, seed=1)[index] for index in range(200)]
    assert some == [Mutants(files, seed=1)[index] for index in range(200)]
    assert {kind for kind, _ in some} == set(KINDS)
    assert len({data for _, data in some}) > 190
    assert all(split(data).join(fitting=True) == data for data in files)


def test_changed_files_hurt_nobody():
    """Under a limit of memory, in a process of its own; the long run is in docs/fuzzing.md."""
    result = subprocess.run(
        [sys.executable, ROOT / "tests/fuzz/mutate.py", "500", "--seed", "9"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"500 files in .* 0 found wrong", result.stdout)


def test_a_crash_and_a_hang_are_found_and_the_rest_goes_on(monkeypatch):
    """That nothing was found means something: here a target dies at file 3, hangs at 5, and breaks its word at 7."""
    import mutate

    def image(data):
        match data[0]:
            case 3:
                mutate.os._exit(139)
            case 5:
                mutate.time.sleep(60)
            case 7:
                raise AssertionError("not so")
        return "read"

    class Numbers:
        files = ()

        def __getitem__(self, index):
            return "bytes", bytes([index])

    monkeypatch.setattr(mutate, "image", image)
    monkeypatch.setattr(mutate, "HANG", 1.0)
    report = mutate.Report()
    for line in mutate.run(Numbers(), [range(0, 4), range(4, 10)], jobs=2):
        report.add(line)
    assert sum(report.outcomes.values()) == 10 and report.outcomes["read"] == 7
    assert report.findings == {
        "3": "the process died, exit code 139",
        "5": "no answer in 1 s",
        "7": "AssertionError: not so",
    }


def test_hints_cannot_outnumber_latents():
    parts = split((CORPUS / "valid" / "hints-64x64-q2.lcz").read_bytes())
    parts.sections[-1] = parts.sections[-1][:5] * (96 * 16 + 1)
    assert "more hints than latents" in targets.image(parts.join(fitting=True))
