"""lora_comp.rans: exact for every int32, close to the ideal length, and safe on damaged streams."""

import itertools
import math

import numpy as np
import pytest
import rans_reference as reference
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.models.google import get_scale_table
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_comp import rans
from lora_comp.errors import BitstreamError

ONE_TABLE = (np.int32([[0, 30000, 60000, 65536]]), np.int32([4]), np.int32([-1]))  # bins: -1, 0, escape
CERTAIN = (np.int32([[0, 65536]]), np.int32([2]), np.int32([0]))  # every symbol is escaped, at no cost in the table
INT32 = np.iinfo(np.int32)


def random_tables(rng, count, max_bins):
    """Rows of 1 to max_bins bins with frequencies from even to nearly certain."""
    sizes = rng.integers(2, max_bins + 2, count).astype(np.int32)
    cdfs = np.zeros((count, max_bins + 1), np.int32)
    for t, size in enumerate(sizes):
        weights = rng.random(size - 1) ** rng.choice([1.0, 8.0, 100.0])
        frequencies = 1 + np.floor(weights / weights.sum() * (65536 - size + 1)).astype(np.int64)
        frequencies[np.argmax(frequencies)] += 65536 - frequencies.sum()
        cdfs[t, 1:size] = np.cumsum(frequencies)
    return cdfs, sizes, rng.integers(-2000, 2000, count).astype(np.int32)


def random_symbols(rng, n, tables, escapes=0.0):
    """Symbols drawn from the tables, and a share `escapes` of them from all of int32."""
    cdfs, sizes, offsets = tables
    indexes = rng.integers(0, len(sizes), n).astype(np.int32)
    slots = rng.integers(0, 65536, n)
    symbols = np.empty(n, np.int64)
    for t in range(len(sizes)):
        at = indexes == t
        symbols[at] = np.searchsorted(cdfs[t, : sizes[t]], slots[at], side="right") - 1 + offsets[t]
    at = rng.random(n) < escapes
    symbols[at] = rng.integers(INT32.min, INT32.max + 1, at.sum()) >> rng.integers(0, 32, at.sum())
    return symbols.astype(np.int32), indexes


def ideal_bytes(symbols, indexes, cdfs, sizes, offsets):
    """Code length under the tables, plus the bytes of escaped values."""
    escape = sizes[indexes] - 2
    value = symbols.astype(np.int64) - offsets[indexes]
    outside = (value < 0) | (value >= escape)
    folded = np.where(value < 0, -2 * value - 1, 2 * (value - escape))[outside]
    bins = np.where(outside, escape, value)
    bits = 16 - np.log2(cdfs[indexes, bins + 1] - cdfs[indexes, bins])
    return bits.sum() / 8 + sum(max(1, math.ceil(int(f).bit_length() / 7)) for f in folded)


def as_lists(*arrays):
    return [array.tolist() for array in arrays]


def check_all_kernels_and_threads(data, symbols, indexes, tables):
    for kernel, threads in itertools.product(rans.KERNELS, (1, 3)):
        assert rans.encode(symbols, indexes, *tables, threads=threads, kernel=kernel) == data, kernel
        decoded = rans.decode(data, indexes, *tables, threads=threads, kernel=kernel)
        np.testing.assert_array_equal(decoded, symbols, err_msg=kernel)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(60_000, 150_000),
    bins=st.sampled_from([1, 2, 40, 3000]),
    escapes=st.sampled_from([0.0, 0.001, 0.5]),
)
def test_kernels_and_threads_give_the_same_bytes(seed, n, bins, escapes):
    """Inputs long enough for 8 to 32 lanes, with frequencies from 1 to 65536."""
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, 7, bins)
    symbols, indexes = random_symbols(rng, n, tables, escapes)
    data = rans.encode(symbols, indexes, *tables, kernel="scalar")
    check_all_kernels_and_threads(data, symbols, indexes, tables)


def test_an_unknown_kernel_or_thread_count_raises():
    with pytest.raises(ValueError, match="kernel neon"):
        rans.encode([0], [0], *ONE_TABLE, kernel="neon")
    with pytest.raises(ValueError, match="threads must be at least 1, not 0"):
        rans.decode(b"", np.zeros(0, int), *ONE_TABLE, threads=0)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 2000),
    count=st.integers(1, 5),
    bins=st.sampled_from([1, 2, 3, 40, 300]),
    escapes=st.sampled_from([0.0, 0.01, 0.5]),
)
def test_bytes_match_the_reference_and_decode(seed, n, count, bins, escapes):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, count, bins)
    symbols, indexes = random_symbols(rng, n, tables, escapes)
    data = reference.encode(*as_lists(symbols, indexes, *tables))
    assert reference.decode(data, *as_lists(indexes, *tables)) == symbols.tolist()
    check_all_kernels_and_threads(data, symbols, indexes, tables)
    assert len(data) <= 1.001 * ideal_bytes(symbols, indexes, *tables) + 16


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_number_of_lanes_grows_with_the_content(lanes, extra):
    """The number of lanes doubles at 4096 bytes of content per lane, 2048 symbols of 16 bits."""
    tables = (np.arange(65537, dtype=np.int32)[None], np.int32([65537]), np.int32([0]))
    n = 2048 * lanes + extra
    symbols = np.random.default_rng(n).integers(0, 65535, n).astype(np.int32)
    indexes = np.zeros(n, np.int32)
    data = reference.encode(*as_lists(symbols, indexes, *tables))
    check_all_kernels_and_threads(data, symbols, indexes, tables)
    assert 2 ** (data[0] & 7) == max(1, lanes if extra >= 0 else lanes // 2)


@pytest.mark.parametrize("n", [131071, 131072, 400_001])
def test_large_inputs_have_several_blocks(n):
    """A block has 2^18 bytes of content: one, two and four blocks."""
    rng = np.random.default_rng(n)
    tables = (np.arange(65537, dtype=np.int32)[None], np.int32([65537]), np.int32([-7]))
    symbols, indexes = random_symbols(rng, n, tables, escapes=0.001)
    data = reference.encode(*as_lists(symbols, indexes, *tables))
    assert (data[0] >> 4) + 1 == 1 + n // 131072
    check_all_kernels_and_threads(data, symbols, indexes, tables)


@pytest.mark.parametrize("n", [1, 3, 100, 5000, 300_000])
@pytest.mark.parametrize("scales", [(0.11, 0.2), (0.11, 256), (1, 2)])
def test_compressai_gaussian_tables_are_supported(n, scales):
    tables = gaussian_tables()
    rng = np.random.default_rng(n)
    table_scales = np.exp(np.linspace(np.log(0.11), np.log(256), 64))
    low, high = np.searchsorted(table_scales, scales[0] - 1e-6), np.searchsorted(table_scales, scales[1] - 1e-6)
    indexes = rng.integers(low, high + 1, n).astype(np.int32)
    symbols = np.rint(rng.normal(size=n) * table_scales[indexes]).astype(np.int32)
    data = rans.encode(symbols, indexes, *tables)
    np.testing.assert_array_equal(rans.decode(data, indexes, *tables), symbols)
    ideal = ideal_bytes(symbols, indexes, *tables)
    assert ideal - 1 <= len(data) <= 1.001 * ideal + 16


def gaussian_tables():
    model = GaussianConditional(get_scale_table().tolist())
    model.update()
    return model.quantized_cdf.numpy(), model.cdf_length.numpy(), model.offset.numpy()


def test_compressai_entropy_bottleneck_tables_are_supported():
    model = EntropyBottleneck(8)
    model.update()
    tables = model.quantized_cdf.numpy(), model.cdf_length.numpy(), model.offset.numpy()
    symbols = np.random.default_rng(0).integers(-20, 20, (2, 8, 5, 7)).astype(np.int32)  # partly outside the tables
    indexes = np.broadcast_to(np.arange(8, dtype=np.int32)[:, None, None], symbols.shape)
    decoded = rans.decode(rans.encode(symbols, indexes, *tables), indexes, *tables)
    assert decoded.shape == symbols.shape
    np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.parametrize("tables", [ONE_TABLE, CERTAIN], ids=["three bins", "one certain bin"])
def test_values_outside_the_table_are_exact(tables):
    symbols = np.int32([0, -1, 1, 2**20, -(2**20), INT32.max, INT32.min, 0])
    indexes = np.zeros(8, np.int32)
    data = rans.encode(symbols, indexes, *tables)
    assert data == reference.encode(*as_lists(symbols, indexes, *tables))
    np.testing.assert_array_equal(rans.decode(data, indexes, *tables), symbols)


def test_symbols_at_the_limits_of_int32_are_exact():
    tables = (ONE_TABLE[0], ONE_TABLE[1], np.int32([INT32.min]))
    symbols, indexes = np.int32([INT32.max, INT32.min]), np.zeros(2, np.int32)
    np.testing.assert_array_equal(rans.decode(rans.encode(symbols, indexes, *tables), indexes, *tables), symbols)


def test_short_inputs_give_few_bytes():
    assert rans.encode(np.zeros(0, np.int32), np.zeros(0, np.int32), *ONE_TABLE) == b""
    assert rans.decode(b"", np.zeros((0, 4), np.int32), *ONE_TABLE).shape == (0, 4)
    assert len(rans.encode(np.int32(0), np.int32(0), *ONE_TABLE)) <= 6
    near_certain = (np.int32([[0, 65535, 65536]]), np.int32([3]), np.int32([0]))
    million = np.zeros(1_000_000, np.int32)
    data = rans.encode(million, million, *near_certain)
    assert len(data) <= 1.001 * ideal_bytes(million, million, *near_certain) + 16
    np.testing.assert_array_equal(rans.decode(data, million, *near_certain), million)


def test_any_integer_dtype_and_memory_order_is_accepted():
    rng = np.random.default_rng(0)
    symbols = rng.integers(-1, 1, (6, 4)).T
    indexes = np.zeros((4, 12), np.uint8)[:, ::2]
    data = rans.encode(symbols, indexes, *ONE_TABLE)
    np.testing.assert_array_equal(rans.decode(data, indexes, *ONE_TABLE), symbols)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 60), big=st.booleans(), escapes=st.sampled_from([0.0, 0.2]))
def test_truncated_or_extended_streams_raise(seed, n, big, escapes):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, 2, 60)
    symbols, indexes = random_symbols(rng, 20_000 if big else n, tables, escapes)
    data = rans.encode(symbols, indexes, *tables)
    cuts = rng.integers(0, len(data), 20) if big else range(len(data))
    for cut in cuts:
        with pytest.raises(BitstreamError):
            rans.decode(data[:cut], indexes, *tables)
    for tail in (b"\0", b"\xff", b"\0\0\0\0", rng.bytes(9)):
        with pytest.raises(BitstreamError):
            rans.decode(data + tail, indexes, *tables)


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 3000), data=st.data())
def test_damaged_streams_raise_or_decode(seed, n, data):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, 3, 40)
    symbols, indexes = random_symbols(rng, n, tables, escapes=0.02)
    stream = bytearray(rans.encode(symbols, indexes, *tables))
    for at in data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=4)):
        stream[at] = data.draw(st.integers(0, 255))
    raises_or_decodes(bytes(stream), indexes, tables)


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=300), n=st.integers(1, 3000), bins=st.sampled_from([1, 2, 300]))
def test_random_bytes_raise_or_decode(data, n, bins):
    tables = random_tables(np.random.default_rng(n), 2, bins)
    raises_or_decodes(data, (np.arange(n) % 2).astype(np.int32), tables)


def raises_or_decodes(data, indexes, tables):
    outcomes = set()
    for kernel in rans.KERNELS:
        try:
            outcomes.add(rans.decode(data, indexes, *tables, kernel=kernel).tobytes())
        except BitstreamError as error:
            assert "\n" not in str(error)
            outcomes.add("raised")  # with several faults, the messages may differ
    assert len(outcomes) == 1


def edited(tables, which, at, value):
    tables = [table.copy() for table in tables]
    tables[which][at] = value
    return tables


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (edited(ONE_TABLE, 0, (0, 2), 30000), "table 0.*rise"),
        (edited(ONE_TABLE, 0, (0, 0), 1), "table 0.*from 0 to 65536"),
        (edited(ONE_TABLE, 0, (0, 3), 65535), "table 0.*from 0 to 65536"),
        (edited(ONE_TABLE, 0, (0, 1), -5), "table 0.*rise"),
        (edited(ONE_TABLE, 1, 0, 5), "table 0: sizes"),
        (edited(ONE_TABLE, 1, 0, 1), "table 0: sizes"),
        (edited(ONE_TABLE, 1, 0, -1), "table 0: sizes"),
        (edited(ONE_TABLE, 2, 0, INT32.max), "table 0: offset"),
        ((ONE_TABLE[0][0], *ONE_TABLE[1:]), "cdfs must have shape"),
        ((*ONE_TABLE[:2], np.int32([0, 0])), "offsets must have shape"),
        ((ONE_TABLE[0].astype(float), *ONE_TABLE[1:]), "cdfs must be integers"),
        ((np.zeros((0, 4), np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32)), r"\[0, 0\)"),
    ],
)
def test_invalid_tables_raise(tables, message):
    zero = np.zeros(1, np.int32)
    data = rans.encode(zero, zero, *ONE_TABLE)
    with pytest.raises(ValueError, match=message) as encoding:
        rans.encode(zero, zero, *tables)
    with pytest.raises(ValueError, match=message) as decoding:
        rans.decode(data, zero, *tables)
    assert "\n" not in str(encoding.value) + str(decoding.value)


@pytest.mark.parametrize("index", [-1, 1, INT32.min, INT32.max])
def test_an_index_without_a_table_raises(index):
    data = rans.encode([0], [0], *ONE_TABLE)
    with pytest.raises(ValueError, match=rf"\[0, 1\), not {index}"):
        rans.encode([0], [index], *ONE_TABLE)
    with pytest.raises(ValueError, match=rf"\[0, 1\), not {index}"):
        rans.decode(data, [index], *ONE_TABLE)


def test_symbols_of_a_wrong_kind_are_named():
    with pytest.raises(ValueError, match=r"^indexes must have shape \(3,\), not \(4,\)"):
        rans.encode(np.zeros(3, int), np.zeros(4, int), *ONE_TABLE)
    with pytest.raises(ValueError, match="symbols must be integers, not float32"):
        rans.encode(np.zeros(3, np.float32), np.zeros(3, int), *ONE_TABLE)
    with pytest.raises(ValueError, match="indexes must be integers, not float64"):
        rans.decode(b"", np.zeros(0), *ONE_TABLE)
    with pytest.raises(ValueError, match="symbols must lie within int32"):
        rans.encode([2**31], [0], *ONE_TABLE)
