"""Every benchmark script runs, here on a photograph of odd size and without timing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lora_comp.data.folders import photograph

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["singular_values.py", "FOLDER:scenes", "--limit", "1", "--steps", "2"],
        ["steps.py", "FOLDER:scenes", "--limit", "1"],
        ["plateau.py", "FOLDER:scenes:128", "--limit", "1"],
        ["plateau.py", "scenes:scenes", "--limit", "1", "--adapter", "shipped"],
        ["refinement.py", "FOLDER:human:64", "--limit", "1", "--quality", "2", "--steps", "2"],
        ["targets.py", "FOLDER", "--limit", "1", "--side", "64", "--bpp", "1"],
        ["memory.py"],
        ["large.py", "256"],
        ["batch.py", "2"],
        ["prompts.py", "tic-v:64x64"],
        ["-m", "pytest", str(BENCHMARKS), "-q", "--benchmark-min-rounds=1", "--benchmark-max-time=0"],
    ],
    ids=lambda words: words[0],
)
def test_benchmarks_run(words, tmp_path):
    Image.fromarray(photograph("chelsea")).save(tmp_path / "chelsea.png")
    name, *rest = (word.replace("FOLDER", str(tmp_path)) for word in words)
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / name) if name.endswith(".py") else name, *rest],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "|" in ran.stdout or "MB" in ran.stdout or "passed" in ran.stdout
