"""Malicious files raise BitstreamError or decode: the corpus and a few hundred mutants, without a fuzzer."""

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
def test_every_target_accepts_the_corpus(target):
    for data in corpus().values():
        targets.TARGETS[target](data)


def test_valid_files_decode():
    """After a change of the format or of the weights run python tests/fuzz/make_corpus.py."""
    outcomes = {name: targets.image(data) for name, data in corpus("valid/*").items()}
    assert len(outcomes) >= 15 and set(outcomes.values()) == {"read"}, outcomes


def test_payloads_decode_or_raise():
    outcomes = {name.split("/")[1]: targets.payload(data) for name, data in corpus("payload/*").items()}
    assert [outcomes[name] for name in ("empty", "small", "wide", "huge")] == ["read"] * 4
    assert outcomes["step-31"] == "the file is corrupt: its parameter updates are invalid"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("wide", "declares 268435456x16 pixels, more than the 268435456 allowed"),
        ("thin", "declares 16777216x16 pixels, more than the 268435456 allowed .sides below 64 count as 64"),
        ("largest", "end early"),  # the largest size, with the z of a 16x16 image
        ("long-z", "truncated: it has .* of the 34359738"),
        ("rank-0", "names an invalid adapter"),
        ("unknown-adapter", "needs the adapter 80616263"),
        ("unknown-codec", "needs other weights"),
        ("method-duic", "method 'duic', which this lora_comp cannot decode"),
        ("other-symbols", "decoded latents differ"),
    ],
)
def test_forged_files_raise_the_right_error(file, message):
    assert re.search(message, targets.image((CORPUS / "forged" / f"{file}.lcz").read_bytes()))


def test_max_pixels_is_the_users_limit(tmp_path, capsys):
    file, image = CORPUS / "valid" / "none-100x70-q4.5.lcz", tmp_path / "image.png"
    assert lc.decode(file.read_bytes(), max_pixels=7000).shape == (3, 100, 70)
    with pytest.raises(lc.BitstreamError, match="70x100 pixels, more than the 6999"):
        lc.decode(file.read_bytes(), max_pixels=6999)
    assert cli.command(["decode", str(file), str(image), "max_pixels=6999"]) == 2
    assert "more than the 6999 allowed" in capsys.readouterr().err and not image.exists()
    assert cli.command(["decode", str(file), str(image), "max_pixels=7000"]) == 0 and image.exists()
    assert cli.command(["decode", str(file), str(image), "max_pixels=many"]) == 2
    assert capsys.readouterr().err == "error: max_pixels must be an integer from 1 to 2^63 - 1, not 'many'\n"


def test_info_reads_images_of_any_size(capsys):
    assert cli.command(["info", str(CORPUS / "forged" / "wide.lcz")]) == 0
    assert "268435456" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["huge-y", "large-y", "huge-z", "large-z"])
def test_symbols_of_any_magnitude_decode(file):
    """The target checks that all samples lie in [0, 1]."""
    assert targets.image((CORPUS / "forged" / f"{file}.lcz").read_bytes()) == "read"


def test_mutants_are_determined_by_their_index():
    files = list(corpus("valid/*").values())
    some = [Mutants(files, seed=1)[index] for index in range(200)]
    assert some == [Mutants(files, seed=1)[index] for index in range(200)]
    assert {kind for kind, _ in some} == set(KINDS)
    assert len({data for _, data in some}) > 190
    assert all(split(data).join(fitting=True) == data for data in files)


def test_mutants_decode_or_raise():
    """In another process under a memory limit; docs/fuzzing.md has the long run."""
    result = subprocess.run(
        [sys.executable, ROOT / "tests/fuzz/mutate.py", "500", "--seed", "9"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"500 files in .* 0 findings", result.stdout)


def test_crashes_and_hangs_are_reported(monkeypatch):
    """The harness detects a target that dies at file 3, hangs at 5 and fails an assertion at 7."""
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
    parts.sections[-1] = parts.sections[-1][:5] * (256 * 16 + 1)
    assert "more hints than latents" in targets.image(parts.join(fitting=True))
