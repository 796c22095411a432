"""Builds lora_comp._C from csrc/ with CMake and Ninja; everything else about the package stands in pyproject.toml.

LORA_COMP_CUDA=ON|OFF|AUTO (default AUTO) says whether the CUDA sources are compiled; AUTO means: if nvcc is found.
LORA_COMP_CUDA_ARCHS=80-real;90 says for which architectures, as CMake lists them; CMakeLists.txt says what is the
default.
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
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"  # kept, so that what did not change is not compiled


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Of an editable install the package's own folder, so that `ninja -C build/cmake-*` is enough from then on.
        output = ROOT / "lora_comp" if self.editable_mode else BUILD
        cuda = os.environ.get("LORA_COMP_CUDA", "AUTO").upper()
        if cuda not in ("ON", "OFF", "AUTO"):
            raise SystemExit(f"LORA_COMP_CUDA={cuda}: use ON, OFF or AUTO")
        cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
        if not cmake or not ninja:
            raise SystemExit("lora_comp needs cmake and ninja to build: pip install cmake ninja")
        tools = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        settings = {
            **tools,
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": output,
            "LORA_COMP_CUDA": cuda,
            "LORA_COMP_CUDA_ARCHS": os.environ.get("LORA_COMP_CUDA_ARCHS", ""),
        }
        configure = [cmake, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"]
        configure += ["--fresh"] if outdated(tools) else []
        configure += [f"-D{name}={value}" for name, value in settings.items()]
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(BUILD)], check=True)
        except subprocess.CalledProcessError:
            raise SystemExit("lora_comp._C could not be built; what CMake says about it stands above") from None
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(output / target.name, target)


def outdated(tools: dict[str, str]) -> bool:
    """Whether the build folder was configured with other tools: those of an isolated build lie elsewhere every time."""
    cache = BUILD / "CMakeCache.txt"
    if not cache.is_file():
        return False
    lines = cache.read_text().splitlines()
    return not all(
        any(line.startswith(f"{name}:") and line.endswith(f"={path}") for line in lines) for name, path in tools.items()
    )


packages = find_packages(include=["lora_comp", "lora_comp.*"])
setup(
    # tasks/ stands at the top level of the checkout and is installed inside the package.
    packages=[*packages, "lora_comp.tasks"],
    ext_modules=[Extension("lora_comp._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
