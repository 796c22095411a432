"""Fuzz targets: functions of arbitrary bytes that return unless the package has a defect.

A file either raises a one-line BitstreamError or decodes to a valid result.
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
DELTAS = 384  # values in an adapter's payload; the number is arbitrary


def returning_message(target: Callable[[bytes], None]) -> Callable[[bytes], str]:
    """Wrap a target to return "read", or the message of its BitstreamError."""

    @wraps(target)
    def run(data: bytes) -> str:
        try:
            target(data)
        except BitstreamError as error:
            assert str(error) and "\n" not in str(error), f"not one line: {error}"
            return str(error)
        return "read"

    return run


@returning_message
def container(data: bytes) -> None:
    header, sections = bitstream.read(data)
    assert bitstream.write(header, sections) == data, "two files have the same content"


@returning_message
def payload(data: bytes) -> None:
    k, step = updates.decode(data, DELTAS)
    assert k.shape == (DELTAS,) and k.dtype == np.int32
    assert 0 < step <= 1


@returning_message
def image(data: bytes) -> None:
    decoded = lc.decode(data)
    header, _ = bitstream.read(data)
    assert decoded.shape == (3, header.height, header.width) and decoded.dtype == torch.float32
    assert decoded.isfinite().all() and decoded.min() >= 0 and decoded.max() <= 1


TARGETS = {"container": container, "payload": payload, "image": image}


def corpus(*patterns: str) -> dict[str, bytes]:
    """Files of the corpus by name, such as `image/plain-1x1-q2.lcz`; all of them without patterns."""
    paths = {path for pattern in patterns or ("*/*",) for path in CORPUS.glob(pattern)}
    return {str(path.relative_to(CORPUS)): path.read_bytes() for path in sorted(paths)}
