"""lora_comp.rans against the coders of CompressAI and, if installed, constriction, single-threaded.

y of a 512x768 image (192x32x48) under CompressAI's 64 scale tables, scales drawn uniformly from them. `kernels`: all of
our kernels that this processor supports.
"""

from functools import partial

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


def ours(symbols, indexes, tables, kernel=""):
    """An encoder and a decoder; so do the peers below."""
    return (
        partial(rans.encode, symbols, indexes, *tables, kernel=kernel),
        lambda data: rans.decode(data, indexes, *tables, kernel=kernel),
    )


def compressai(symbols, indexes, tables):
    arguments = [array.tolist() for array in (symbols, indexes, *tables)]  # its API takes lists; not timed
    encoder, decoder = ans.RansEncoder(), ans.RansDecoder()
    return (
        partial(encoder.encode_with_indexes, *arguments),
        lambda data: decoder.decode_with_indexes(data, *arguments[1:]),
    )


def constriction(symbols, indexes, _):
    """Its Gaussian models take a mean and a standard deviation per symbol, and the range of symbols."""
    stream = pytest.importorskip("constriction").stream
    deviations = get_scale_table().numpy()[indexes].astype(np.float32)
    means = np.zeros(SYMBOLS, np.float32)
    family = stream.model.QuantizedGaussian(int(symbols.min()), int(symbols.max()))

    def encode():
        coder = stream.stack.AnsCoder()
        coder.encode_reverse(symbols, family, means, deviations)
        return coder.get_compressed()

    return encode, lambda data: stream.stack.AnsCoder(data).decode(family, means, deviations)


KINDS = {"ours": ours, "CompressAI": compressai, "constriction": constriction}


def time_encoding(benchmark, symbols, encode, decode):
    data = benchmark(encode)
    report(benchmark, data)
    np.testing.assert_array_equal(decode(data), symbols)


def time_decoding(benchmark, symbols, encode, decode):
    data = encode()
    decoded = benchmark(decode, data)
    report(benchmark, data)
    np.testing.assert_array_equal(decoded, symbols)


def report(benchmark, data):
    benchmark.extra_info["bytes"] = memoryview(data).nbytes
    benchmark.extra_info["symbols_per_second"] = SYMBOLS / benchmark.stats.stats.median


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.benchmark(group="rANS encoding, 294,912 symbols")
def test_encode(benchmark, problem, kind):
    time_encoding(benchmark, problem[0], *KINDS[kind](*problem))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.benchmark(group="rANS decoding, 294,912 symbols")
def test_decode(benchmark, problem, kind):
    time_decoding(benchmark, problem[0], *KINDS[kind](*problem))


@pytest.mark.parametrize("kernel", rans.KERNELS)
@pytest.mark.benchmark(group="kernels: encode")
def test_encode_by_kernel(benchmark, problem, kernel):
    time_encoding(benchmark, problem[0], *ours(*problem, kernel))


@pytest.mark.parametrize("kernel", rans.KERNELS)
@pytest.mark.benchmark(group="kernels: decode")
def test_decode_by_kernel(benchmark, problem, kernel):
    time_decoding(benchmark, problem[0], *ours(*problem, kernel))
