"""Seconds of one encode by how long OpenMP's threads spin before they sleep, alone and beside busy processes.

`python benchmarks/waiting.py IMAGE [engine.steps=5] [--busy 2] [--repeat 3] [--spin default 0 ...]` runs `lora-comp
encode IMAGE` in a process of its own with GOMP_SPINCOUNT set to each value; "default" leaves it to the package,
libgomp's own is 300000. The smallest time of each counts.
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

BUSY = "import itertools\nfor _ in itertools.count(): pass"


@contextmanager
def busy(count: int):
    """Processes that keep a core busy each."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def encode(image: Path, spin: str, words: list[str]) -> float:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    if spin != "default":
        environment["GOMP_SPINCOUNT"] = spin
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lora_comp.cli", "encode", str(image), f"{folder}/a.lcz", *words]
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="processes beside it")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--spin", nargs="+", default=["default", "300000", "0", "1000", "10000"])
    given, words = parser.parse_known_args()  # the others are settings of lora-comp encode
    print(f"| GOMP_SPINCOUNT | alone | beside {given.busy} |\n|---|---:|---:|")
    alone: dict[str, list[float]] = {spin: [] for spin in given.spin}
    beside: dict[str, list[float]] = {spin: [] for spin in given.spin}
    for _ in range(given.repeat):
        for spin in given.spin:
            alone[spin].append(encode(given.image, spin, words))
        with busy(given.busy):
            for spin in given.spin:
                beside[spin].append(encode(given.image, spin, words))
    for spin in given.spin:
        print(f"| {spin} | {min(alone[spin]):.1f} s | {min(beside[spin]):.1f} s |", flush=True)


if __name__ == "__main__":
    main()
