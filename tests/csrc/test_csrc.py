"""csrc by itself, under AddressSanitizer and UndefinedBehaviorSanitizer: unit tests, fuzz targets over the corpus."""

import shutil
import subprocess
from pathlib import Path

import pytest


def test_sanitizers_are_clean():
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    result = subprocess.run([Path(__file__).parent / "run.sh"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    if result.stdout.startswith("skipped"):
        pytest.skip(result.stdout)
    assert result.stdout.count("passed") == 12 and result.stdout.count("nothing found") == 3
