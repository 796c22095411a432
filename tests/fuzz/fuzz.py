"""Fuzz one of the Python targets with atheris, guided by coverage of lora_comp's own code.

    python tests/fuzz/fuzz.py container|payload|image [libFuzzer's arguments, as -max_total_time=60 FOLDER]

Without FOLDER the corpus in the tree is read and nothing is written to it. Changed files get a right CRC in three of
four cases, or next to none would come past the container.
"""

import os
import random
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import atheris
except ImportError:
    print("skipped: atheris is not installed; pip install '.[fuzz]' where it has a wheel")
    sys.exit(0)

with atheris.instrument_imports(
    include=["lora_comp.bitstream", "lora_comp.entropy", "lora_comp.api", "lora_comp.methods"]
):
    import lora_comp.api
    import lora_comp.bitstream
    import lora_comp.entropy.updates
    import lora_comp.methods  # noqa: F401

import torch
from mutations import with_crc
from targets import CORPUS, TARGETS

FOLDERS = {"container": ("valid", "forged"), "payload": ("payload",), "image": ("valid", "forged")}


def mutated_with_crc(data: bytes, max_size: int, seed: int) -> bytes:
    data = atheris.Mutate(data, max_size)
    return with_crc(data[:-4]) if len(data) > 4 and random.Random(seed).random() < 0.75 else data


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"error: name a target: {', '.join(TARGETS)}")
    name, arguments = sys.argv[1], sys.argv[2:]
    torch.set_num_threads(1)
    if all(argument.startswith("-") for argument in arguments):
        arguments = [*arguments, tempfile.mkdtemp(), *(str(CORPUS / folder) for folder in FOLDERS[name])]
    options = {} if name == "payload" else {"custom_mutator": mutated_with_crc}
    atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=4096", *arguments], TARGETS[name], **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
