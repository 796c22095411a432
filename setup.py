"""Builds lora_comp._C from csrc/ with CMake and Ninja; everything else about the package stands in pyproject.toml.

LORA_COMP_CUDA=ON|OFF|AUTO (default AUTO) says whether the CUDA sources are compiled; AUTO means: if nvcc is found.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        cuda = os.environ.get("LORA_COMP_CUDA", "AUTO").upper()
        if cuda not in ("ON", "OFF", "AUTO"):
            raise SystemExit(f"LORA_COMP_CUDA={cuda}: use ON, OFF or AUTO")
        cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
        if not cmake or not ninja:
            raise SystemExit("lora_comp needs cmake and ninja to build: pip install cmake ninja")
        configure = [
            cmake,
            "-S", str(ROOT),
            "-B", str(build),
            "-G", "Ninja",
            "--fresh",  # an isolated build's compilers and pybind11 lie in another folder every time
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DLORA_COMP_CUDA={cuda}",
        ]  # fmt: skip
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(build)], check=True)
        except subprocess.CalledProcessError:
            raise SystemExit("lora_comp._C could not be built; what CMake says about it stands above") from None


packages = find_packages(include=["lora_comp", "lora_comp.*"])
setup(
    # tasks/ stands at the top level of the checkout and is installed inside the package.
    packages=[*packages, "lora_comp.tasks"],
    ext_modules=[Extension("lora_comp._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
