"""From y, means and scales to bytes and back in one pass, against CompressAI's GaussianConditional: one thread.

y of a 512x768 picture (192x32x48), scales from 0.11 to 256. CompressAI picks tables, rounds and codes in steps, the
last on Python lists. `blocks` is the coder alone on 16 times as many symbols, by one and two threads.
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


@pytest.fixture(scope="module")
def compressai():
    model = GaussianConditional(get_scale_table().tolist())
    model.update()
    torch.set_num_threads(1)
    return model


def encode(y, means, scales):
    symbols = np.empty(SHAPE, np.int32)
    return _C.encode_latents(y, means, scales, BETWEEN, *gaussian_tables(), 1e-9, symbols)


def decode(data, hints, means, scales):
    symbols, y = np.empty(SHAPE, np.int32), np.empty(SHAPE, np.float32)
    _C.decode_latents(data, means, scales, BETWEEN, *gaussian_tables(), hints, symbols, y)
    return y


@pytest.mark.benchmark(group="latents to bytes")
def test_encode(benchmark, latents):
    y, means, scales = latents
    data, hints = benchmark(encode, y, means, scales)
    benchmark.extra_info["bytes"] = len(data)
    assert np.abs(decode(data, hints, means, scales) - y).max() <= 0.501


@pytest.mark.benchmark(group="latents to bytes")
def test_encode_compressai(benchmark, latents, compressai):
    y, means, scales = (torch.from_numpy(a).float()[None] for a in latents)

    def compress():
        return compressai.compress(y, compressai.build_indexes(scales), means)

    data = benchmark(compress)
    benchmark.extra_info["bytes"] = len(data[0])
    assert (compressai.decompress(data, compressai.build_indexes(scales), means=means) - y).abs().max() <= 0.501


@pytest.mark.benchmark(group="bytes to latents")
def test_decode(benchmark, latents):
    y, means, scales = latents
    decoded = benchmark(decode, *encode(y, means, scales), means, scales)
    assert np.abs(decoded - y).max() <= 0.501


@pytest.mark.benchmark(group="bytes to latents")
def test_decode_compressai(benchmark, latents, compressai):
    y, means, scales = (torch.from_numpy(a).float()[None] for a in latents)
    data = compressai.compress(y, compressai.build_indexes(scales), means)

    def decompress():
        return compressai.decompress(data, compressai.build_indexes(scales), means=means)

    assert (benchmark(decompress) - y).abs().max() <= 0.501


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
