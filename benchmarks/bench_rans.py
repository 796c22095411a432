"""lora_comp.rans against CompressAI's coder: y of a 512x768 picture (192x32x48) under the 64 Gaussian scale tables."""

import numpy as np
import pytest
from compressai import ans
from compressai.entropy_models import GaussianConditional
from compressai.models.google import get_scale_table

from lora_comp import rans

SYMBOLS = 192 * 32 * 48


@pytest.fixture(scope="module")
def problem():
    scales = get_scale_table()
    model = GaussianConditional(scales.tolist())
    model.update()
    tables = model.quantized_cdf.numpy(), model.cdf_length.numpy(), model.offset.numpy()
    rng = np.random.default_rng(0)
    indexes = rng.integers(0, 64, SYMBOLS).astype(np.int32)
    symbols = np.rint(rng.normal(size=SYMBOLS) * scales.numpy()[indexes]).astype(np.int32)
    return symbols, indexes, tables


def report(benchmark, data):
    benchmark.extra_info["bytes"] = len(data)
    benchmark.extra_info["symbols_per_second"] = SYMBOLS / benchmark.stats.stats.median


@pytest.mark.benchmark(group="encode")
def test_encode(benchmark, problem):
    symbols, indexes, tables = problem
    data = benchmark(rans.encode, symbols, indexes, *tables)
    report(benchmark, data)
    np.testing.assert_array_equal(rans.decode(data, indexes, *tables), symbols)


@pytest.mark.benchmark(group="decode")
def test_decode(benchmark, problem):
    symbols, indexes, tables = problem
    data = rans.encode(symbols, indexes, *tables)
    decoded = benchmark(rans.decode, data, indexes, *tables)
    report(benchmark, data)
    np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.benchmark(group="encode")
def test_encode_compressai(benchmark, problem):
    symbols, indexes, tables = problem
    arguments = [array.tolist() for array in (symbols, indexes, *tables)]  # its API takes lists; not timed
    data = benchmark(ans.RansEncoder().encode_with_indexes, *arguments)
    report(benchmark, data)
    assert ans.RansDecoder().decode_with_indexes(data, *arguments[1:]) == arguments[0]


@pytest.mark.benchmark(group="decode")
def test_decode_compressai(benchmark, problem):
    symbols, indexes, tables = problem
    arguments = [array.tolist() for array in (symbols, indexes, *tables)]
    data = ans.RansEncoder().encode_with_indexes(*arguments)
    decoded = benchmark(ans.RansDecoder().decode_with_indexes, data, *arguments[1:])
    report(benchmark, data)
    assert decoded == arguments[0]
