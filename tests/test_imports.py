"""The layers of the package hold, with tasks/ where an install puts it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_comp.methods import METHODS

ROOT = Path(__file__).parents[1]


def test_codecs_and_descent_know_no_method():
    names = [*METHODS, "svdlora", "transtic", "alice", "duic"]
    for path in [*(ROOT / "lora_comp" / "codecs").glob("*.py"), ROOT / "lora_comp" / "finetune.py"]:
        text = re.sub(r"lora.comp\b|LoraComp", "", path.read_text())
        assert not re.search(rf"\b({'|'.join(names)})\b", text, re.IGNORECASE), path
        assert "methods" not in re.findall(r"^from lora_comp\.(\w+)", path.read_text(), re.MULTILINE), path


def test_no_module_imports_one_above_it_and_none_in_a_circle(tmp_path):
    pytest.importorskip("importlinter")
    shutil.copytree(ROOT / "lora_comp", tmp_path / "lora_comp", ignore=shutil.ignore_patterns("*.so", "*.safetensors"))
    shutil.copytree(ROOT / "tasks", tmp_path / "lora_comp" / "tasks")
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    checked = subprocess.run(
        [sys.executable, "-c", program, "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
    assert "2 kept, 0 broken" in checked.stdout


@pytest.mark.parametrize(
    "given, spins",
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(given, spins):
    """docs/speed.md, beside other work."""
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    program = "import lora_comp, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=own | given, capture_output=True, text=True)
    assert told.stdout.split() == [spins, "False"], told.stderr
