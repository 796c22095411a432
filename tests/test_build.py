"""The installed package: imports from any folder, has its compiled module, and is built without torch's headers."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(code, cwd, *options):
    return subprocess.run([sys.executable, *options, "-c", code], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("folder", ["the checkout's root", "any other folder"])
def test_the_installed_package_is_found_from(folder, tmp_path):
    """`python -c` and `python -m` search the current folder first, and the checkout's lora_comp has no tasks."""
    cwd = ROOT if folder == "the checkout's root" else tmp_path
    result = python("import lora_comp.rans, lora_comp.tasks.cls; print(lora_comp.rans._C.__name__)", cwd)
    assert result.stdout == "lora_comp._C\n", result.stderr


def test_a_missing_compiled_module_raises_a_one_line_error(tmp_path):
    (tmp_path / "lora_comp").mkdir()
    for name in ("__init__.py", "errors.py", "rans.py"):
        shutil.copy(ROOT / "lora_comp" / name, tmp_path / "lora_comp")
    libraries = Path(find_spec("numpy").origin).parents[1]
    code = f"""
import sys
sys.path += [{str(libraries)!r}]
try:
    import lora_comp.rans
except ImportError as error:
    print(error)
"""
    result = python(code, tmp_path, "-S")  # -S: ignore editable installs
    assert re.fullmatch(r".*run `pip install \.`.*\n", result.stdout), result.stderr


def test_only_the_bindings_include_python_and_nothing_includes_torch():
    for source in (ROOT / "csrc").rglob("*.[ch]*"):
        included = re.findall(r'#include [<"](.+?)[>"]', source.read_text())
        assert not [name for name in included if re.match("torch|ATen|c10", name)], source
        assert source.name == "bindings.cpp" or not [name for name in included if "ython" in name or "pybind" in name]
