"""lora_comp.rans against CompressAI's and constriction's coders, one thread each.

y of a 512x768 picture (192x32x48) under CompressAI's 64 scale tables, scales drawn evenly from them.
`pytest benchmarks/bench_rans.py` times every kernel that runs here; constriction is a peer where it is installed.
"""

import numpy as np
import pytest
from compressai import ans
from compressai.entropy_models import GaussianConditional
from compressai.models.google import get_scale_table

from lora_comp import rans

SYMBOLS = 192 * 32 * 48
kernels = pytest.mark.parametrize("kernel", rans.KERNELS)


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


def report(benchmark, size):
    benchmark.extra_info["bytes"] = size
    benchmark.extra_info["symbols_per_second"] = SYMBOLS / benchmark.stats.stats.median


@kernels
@pytest.mark.benchmark(group="encode")
def test_encode(benchmark, problem, kernel):
    symbols, indexes, tables = problem
    data = benchmark(rans.encode, symbols, indexes, *tables, kernel=kernel)
    report(benchmark, len(data))
    np.testing.assert_array_equal(rans.decode(data, indexes, *tables), symbols)


@kernels
@pytest.mark.benchmark(group="decode")
def test_decode(benchmark, problem, kernel):
    symbols, indexes, tables = problem
    data = rans.encode(symbols, indexes, *tables)
    decoded = benchmark(rans.decode, data, indexes, *tables, kernel=kernel)
    report(benchmark, len(data))
    np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.benchmark(group="encode")
def test_encode_compressai(benchmark, problem):
    symbols, indexes, tables = problem
    arguments = [array.tolist() for array in (symbols, indexes, *tables)]  # its API takes lists; not timed
    data = benchmark(ans.RansEncoder().encode_with_indexes, *arguments)
    report(benchmark, len(data))
    assert ans.RansDecoder().decode_with_indexes(data, *arguments[1:]) == arguments[0]


@pytest.mark.benchmark(group="decode")
def test_decode_compressai(benchmark, problem):
    symbols, indexes, tables = problem
    arguments = [array.tolist() for array in (symbols, indexes, *tables)]
    data = ans.RansEncoder().encode_with_indexes(*arguments)
    decoded = benchmark(ans.RansDecoder().decode_with_indexes, data, *arguments[1:])
    report(benchmark, len(data))
    assert decoded == arguments[0]


@pytest.fixture
def constriction_problem(problem):
    """Its Gaussian models take a mean and a deviation for each symbol, and the range that symbols lie in."""
    stream = pytest.importorskip("constriction").stream
    symbols, indexes, _ = problem
    deviations = get_scale_table().numpy()[indexes].astype(np.float32)
    family = stream.model.QuantizedGaussian(int(symbols.min()), int(symbols.max()))
    return stream.stack.AnsCoder, family, symbols, np.zeros(SYMBOLS, np.float32), deviations


@pytest.mark.benchmark(group="encode")
def test_encode_constriction(benchmark, constriction_problem):
    coder, family, symbols, means, deviations = constriction_problem

    def encode():
        ans_coder = coder()
        ans_coder.encode_reverse(symbols, family, means, deviations)
        return ans_coder.get_compressed()

    data = benchmark(encode)
    report(benchmark, data.nbytes)
    np.testing.assert_array_equal(coder(data).decode(family, means, deviations), symbols)


@pytest.mark.benchmark(group="decode")
def test_decode_constriction(benchmark, constriction_problem):
    coder, family, symbols, means, deviations = constriction_problem
    ans_coder = coder()
    ans_coder.encode_reverse(symbols, family, means, deviations)
    data = ans_coder.get_compressed()
    decoded = benchmark(lambda: coder(data).decode(family, means, deviations))
    report(benchmark, data.nbytes)
    np.testing.assert_array_equal(decoded, symbols)
