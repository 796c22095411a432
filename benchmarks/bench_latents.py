"""Coding of y given means and scales in one pass, against CompressAI's GaussianConditional, single-threaded.

y of a 512x768 image (192x32x48), scales from 0.11 to 256. CompressAI selects tables, rounds and codes separately, the
latter on Python lists. `blocks`: the coder alone on 16 times as many symbols, with one and two threads.
"""

import numpy as np
import pytest
import torch
from compressai.entropy_models import GaussianConditional
from compressai.models.google import get_scale_table

from lora_comp import _C, rans
from lora_comp.entropy.tables import BETWEEN, gaussian_tables

SHAPE = (192, 32, 48)


@pytest.fixture(scope="module")
def latents():
    """y float32, means and scales float64, each (192, 32, 48)."""
    rng = np.random.default_rng(0)
    scales = np.exp(rng.uniform(np.log(0.11), np.log(256), SHAPE))
    means, noise = rng.normal(size=(2, *SHAPE))
    return (means + noise * scales).astype(np.float32), means, scales


def ours(y, means, scales):
    """An encoder, which returns the bytes and hints, and a decoder of these to latents; so does the peer below."""

    def encode():
        symbols = np.empty(SHAPE, np.int32)
        return _C.encode_latents(y, means, scales, BETWEEN, *gaussian_tables(), 1e-9, symbols)

    def decode(coded):
        data, hints = coded
        symbols, decoded = np.empty(SHAPE, np.int32), np.empty(SHAPE, np.float32)
        _C.decode_latents(data, means, scales, BETWEEN, *gaussian_tables(), hints, symbols, decoded)
        return decoded

    return encode, decode


def compressai(*latents):
    y, means, scales = (torch.from_numpy(array).float()[None] for array in latents)
    model = GaussianConditional(get_scale_table().tolist())
    model.update()
    return (
        lambda: model.compress(y, model.build_indexes(scales), means),
        lambda coded: model.decompress(coded, model.build_indexes(scales), means=means)[0],
    )


KINDS = {"ours": ours, "CompressAI": compressai}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.benchmark(group="latents to bytes, 512x768 image")
def test_encode(benchmark, latents, kind):
    encode, decode = KINDS[kind](*latents)
    coded = benchmark(encode)
    benchmark.extra_info["bytes"] = len(coded[0])
    assert np.abs(np.asarray(decode(coded)) - latents[0]).max() <= 0.501


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.benchmark(group="bytes to latents, 512x768 image")
def test_decode(benchmark, latents, kind):
    encode, decode = KINDS[kind](*latents)
    decoded = benchmark(decode, encode())
    assert np.abs(np.asarray(decoded) - latents[0]).max() <= 0.501


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("what", ["encode", "decode"])
def test_blocks(benchmark, latents, what, threads):
    benchmark.group = f"blocks: {what}"
    scales = np.tile(latents[2], (16, 1, 1))
    indexes = np.searchsorted(BETWEEN, scales).astype(np.int32)
    symbols = np.rint(np.random.default_rng(1).normal(size=scales.shape) * scales).astype(np.int32)
    data = rans.encode(symbols, indexes, *gaussian_tables())
    if what == "encode":
        assert benchmark(rans.encode, symbols, indexes, *gaussian_tables(), threads=threads) == data
    else:
        decoded = benchmark(rans.decode, data, indexes, *gaussian_tables(), threads=threads)
        np.testing.assert_array_equal(decoded, symbols)
