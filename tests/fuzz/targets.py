"""What is fuzzed: functions of any bytes that return unless something is wrong with the package.

A file is either refused by a BitstreamError of one line or decoded to what the function's documentation promises.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np
import torch

import lora_comp as lc
from lora_comp import bitstream
from lora_comp.entropy import updates
from lora_comp.errors import BitstreamError

CORPUS = Path(__file__).parent / "corpus"
DELTAS = 384  # changes in an adapter's payload: any number will do


def refused_in_one_line(target: Callable[[bytes], None]) -> Callable[[bytes], str]:
    """The target returns "read", or why the bytes were refused."""

    @wraps(target)
    def run(data: bytes) -> str:
        try:
            target(data)
        except BitstreamError as error:
            assert str(error) and "\n" not in str(error), f"not one line: {error}"
            return str(error)
        return "read"

    return run


@refused_in_one_line
def container(data: bytes) -> None:
    header, sections = bitstream.read(data)
    assert bitstream.write(header, sections) == data, "two files say the same"


@refused_in_one_line
def payload(data: bytes) -> None:
    k, step = updates.decode(data, DELTAS)
    assert k.shape == (DELTAS,) and k.dtype == np.int32
    assert 0 < step <= 1


@refused_in_one_line
def image(data: bytes) -> None:
    decoded = lc.decode(data)
    header, _ = bitstream.read(data)
    assert decoded.shape == (3, header.height, header.width) and decoded.dtype == torch.float32
    assert decoded.isfinite().all() and decoded.min() >= 0 and decoded.max() <= 1


TARGETS = {"container": container, "payload": payload, "image": image}


def corpus(*patterns: str) -> dict[str, bytes]:
    """The stored files by name, as `image/plain-1x1-q2.lcz`; all of them without patterns."""
    paths = {path for pattern in patterns or ("*/*",) for path in CORPUS.glob(pattern)}
    return {str(path.relative_to(CORPUS)): path.read_bytes() for path in sorted(paths)}
