"""Coding of quantised updates: exact, and of the estimated length."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lora_comp as lc
from lora_comp.entropy import updates

update_lists = st.lists(st.one_of(st.integers(-3, 3), st.integers(-(2**31), 2**31 - 1)), min_size=1, max_size=200)
COUNTS = pytest.mark.parametrize("count", [80, updates.FEW, updates.FEW + 1, 4000])


def laplace(count, spread, seed=0):
    return np.random.default_rng(seed).laplace(0, spread, count).round().astype(np.int32)


@settings(deadline=None)
@given(update_lists, st.sampled_from(list(updates.EXPONENTS)))
def test_decode_inverts_encode(values, exponent):
    k = np.array(values, np.int32)
    decoded, step = updates.decode(updates.encode(k, exponent), len(k))
    assert decoded.tolist() == values
    assert step == 2.0**-exponent or not k.any()


@COUNTS
@pytest.mark.parametrize("spread", [0.3, 30, 2**20])
def test_decode_inverts_encode_for_any_count(count, spread):
    k = laplace(count, spread)
    decoded, step = updates.decode(updates.encode(k, 7), count)
    np.testing.assert_array_equal(decoded, k)
    assert step == 2.0**-7


@COUNTS
def test_zero_updates_have_an_empty_payload(count):
    assert updates.encode(np.zeros(count, np.int32), 8) == b""
    assert updates.decode(b"", count)[0].tolist() == [0] * count
    assert updates.bits(torch.zeros(count)) == 0


@pytest.mark.parametrize("spread", [0.2, 1, 5, 40, 250])
@pytest.mark.parametrize("count, slack", [(80, 9), (1000, 9), (4000, 8 * 14)])
def test_estimated_bits_match_the_payload(spread, count, slack):
    k = laplace(count, spread, seed=count)
    estimated = updates.bits(torch.from_numpy(k).float()).item()
    actual = 8 * len(updates.encode(k, 8))
    assert actual == pytest.approx(estimated, rel=0.02 if count > updates.FEW else 0, abs=slack)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(st.integers(-3, 3), st.integers(-(10**6), 10**6)), min_size=8, max_size=8),
        min_size=1,
        max_size=3,
    )
)
def test_bits_of_a_batch_match_the_cost_of_bins(several):
    rates = updates.bits(torch.tensor(several, dtype=torch.float32))
    for values, rate in zip(several, rates.tolist(), strict=True):
        context, price = updates.Context(), 5.0
        for k in values:
            price += updates.cost(k, context)
            context.add(abs(k))
        assert rate == pytest.approx(price if any(values) else 0, abs=0.01)


@pytest.mark.parametrize("values", [[3, -5, 0, 1], [1] * 80, [-200, 7, 0, 3000] * 20, [2, 0, -1] * 1000])
def test_gradients_of_bits_point_away_from_zero(values):
    k = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    updates.bits(k).backward()
    assert k.grad.sign().tolist() == torch.tensor(values).sign().tolist()


def test_layers_without_updates_cost_little():
    changed = laplace(64, 2)
    with_idle_layers = np.concatenate([np.zeros(256, np.int32), changed, np.zeros(256, np.int32)])
    assert len(updates.encode(with_idle_layers, 5)) <= len(updates.encode(changed, 5)) + 4


def test_contexts_adapt_to_each_layer():
    layers = np.concatenate([laplace(40, spread, seed) for seed, spread in enumerate((0.2, 6, 0.2, 6))])
    mixed = np.random.default_rng(0).permutation(layers)
    assert len(updates.encode(layers, 5)) < 0.95 * len(updates.encode(mixed, 5))


def test_cheapest_is_zero_without_distortion():
    assert updates.cheapest([{k: 0.0 for k in range(-3, 4)}] * 40, [2] * 40) == [0] * 40


def test_cheapest_follows_a_dominant_distortion():
    expected = laplace(40, 3).tolist()
    choices = [{k: 1000.0 * abs(k - best) for k in range(best - 2, best + 3)} for best in expected]
    assert updates.cheapest(choices, [0] * 40) == expected


def test_cheapest_trades_rate_against_distortion():
    place = torch.from_numpy(np.random.default_rng(0).normal(0, 1.5, 64))
    nearest = place.round().int().tolist()
    choices = [
        {k: 2.0 * (k - x) ** 2 for k in {nearby, 0, nearby - 1, nearby + 1}}
        for nearby, x in zip(nearest, place.tolist(), strict=True)
    ]

    def cost(k):
        return sum(choice[v] for choice, v in zip(choices, k, strict=True)) + updates.bits(torch.tensor(k).float())

    assert cost(updates.cheapest(choices, nearest)) < cost(nearest) - 5


@pytest.mark.parametrize("payload", [b"\0", b"\0\x08abcd", b"\xff" * 80, b"\x05", b"\xff" * 10_000])
def test_invalid_adaptive_payloads_raise(payload):
    with pytest.raises(lc.BitstreamError):
        updates.decode(payload, 1)


@pytest.mark.parametrize("payload", [b"\x08", b"\xff\x00abcd", b"\x08\xff" + bytes(8), b"\x08\x05", b"\x08\x05\x01"])
def test_invalid_static_payloads_raise(payload):
    with pytest.raises(lc.BitstreamError):
        updates.decode(payload, updates.FEW + 1)


@settings(deadline=None)
@given(update_lists, st.data())
def test_damaged_payloads_raise_or_decode(values, data):
    """Payloads are tested here without the checksum of the file."""
    payload = bytearray(updates.encode(np.array(values, np.int32), 8))
    if data.draw(st.booleans()):
        payload = payload[: data.draw(st.integers(0, len(payload)))]
    elif payload:
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    check_canonical(bytes(payload), len(values))


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 120))
def test_arbitrary_payloads_raise_or_are_canonical(payload, count):
    check_canonical(payload, count)


def check_canonical(payload, count):
    try:
        k, step = updates.decode(payload, count)
    except lc.BitstreamError as error:
        assert "\n" not in str(error)
    else:
        assert k.shape == (count,) and 0 < step <= 1
        assert updates.encode(k, round(-np.log2(step))) == payload


@pytest.mark.data
def test_published_bits_of_the_benchmark_match_golden_bits(shared, monkeypatch):
    """The golden bits come from float32 differences of a cumulative distribution near 1, with errors of up to 1 bit for
    rare values and 5 bits for the rarest; the exact code length is slightly lower."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    monkeypatch.delitem(sys.modules, "singular_values", raising=False)
    import singular_values as benchmark

    golden = np.load(shared / "golden" / "weight_prior.npz")
    assert golden["step"] == benchmark.STEP
    quantised = benchmark.STEP * (torch.from_numpy(golden["singular_values"]).double() / benchmark.STEP).round()
    np.testing.assert_allclose(quantised.numpy(), golden["quantised"], rtol=0, atol=1e-8)
    bits = benchmark.published_bits(quantised).numpy()
    likely = golden["bits"] < 12
    np.testing.assert_allclose(bits[likely], golden["bits"][likely], rtol=0, atol=1e-3)
    np.testing.assert_allclose(bits[~likely], golden["bits"][~likely], rtol=0, atol=5.1)
    assert 0.99 * golden["bits"].sum() < bits.sum() <= golden["bits"].sum()
