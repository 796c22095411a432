"""Every header of csrc compiles by itself, with each compiler and standard library that is installed, and the CUDA
sources with nvcc. The other sources are compiled by every build."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILERS = {
    "g++": ["g++"],
    "clang++ and libstdc++": ["clang++", "-Werror=ignored-attributes"],
    "clang++ and libc++": ["clang++", "-Werror=ignored-attributes", "-stdlib=libc++"],
}
FLAGS = ["-std=c++17", "-fsyntax-only", "-Wno-psabi", "-Icsrc", "-x", "c++"]
EMULATED = ["-Itests/csrc", "-Itests/csrc/emulated"]  # in place of CUDA's own headers
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".hpp", ".cuh", ".cu"))


def compiles(command):
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", COMPILERS)
def test_each_file_includes_what_it_uses(name):
    compiler = COMPILERS[name]
    probe = [*compiler, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    if (
        shutil.which(compiler[0]) is None
        or subprocess.run(probe, input="#include <vector>", capture_output=True, text=True).returncode
    ):
        pytest.skip(f"{name} is not installed")
    commands = [[*compiler, *FLAGS, *(EMULATED if path.suffix in (".cu", ".cuh") else []), str(path)] for path in FILES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiles, commands))


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".cu"], ids=str)
@pytest.mark.parametrize("architecture", ["sm_90"])  # sm_80 is that of a build without a GPU
def test_nvcc_compiles(path, architecture, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    compiles(
        [
            "nvcc",
            "-std=c++17",
            f"-arch={architecture}",
            "-Icsrc",
            "-x",
            "cu",
            "-c",
            str(path),
            "-o",
            f"{tmp_path}/out.o",
        ]
    )
