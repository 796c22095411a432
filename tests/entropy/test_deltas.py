"""What the decoder's changes cost, and that they come back exactly."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lora_comp as lc
from lora_comp.entropy import deltas

changes = st.lists(st.integers(-2 ** 20, 2 ** 20), min_size=1, max_size=200)


@settings(deadline=None)
@given(changes, st.sampled_from(list(deltas.EXPONENTS)))
def test_changes_come_back_exactly(values, exponent):
    k = np.array(values, np.int32)
    decoded, step = deltas.decode(deltas.encode(k, exponent), len(k))
    assert decoded.tolist() == values
    assert step == 2.0 ** -exponent or not k.any()


def test_no_change_costs_nothing():
    assert deltas.encode(np.zeros(80, np.int32), 8) == b""
    assert deltas.decode(b"", 80)[0].tolist() == [0] * 80
    assert deltas.bits(torch.zeros(80)) < 30


@pytest.mark.parametrize("spread", [0.2, 1, 5, 40, 250])
@pytest.mark.parametrize("count", [80, 4000])
def test_the_rate_that_is_trained_on_is_the_rate_that_is_paid(spread, count):
    k = np.random.default_rng(count).laplace(0, spread, count).round().astype(np.int32)
    estimated = deltas.bits(torch.from_numpy(k).float()).item()
    assert 8 * len(deltas.encode(k, 8)) == pytest.approx(estimated, rel=0.02, abs=8 * 14)


def test_the_rate_falls_with_the_changes():
    k = torch.tensor([3.0, -5.0, 0.0, 1.0], requires_grad=True)
    deltas.bits(k).backward()
    assert k.grad.sign().tolist() == [1, -1, 0, 1]


@pytest.mark.parametrize("payload", [b"\x08", b"\xff\x00abcd", b"\x08\xff" + bytes(8), b"\x08\x05", b"\x08\x05\x01"])
def test_a_payload_that_cannot_be_is_refused(payload):
    with pytest.raises(lc.BitstreamError):
        deltas.decode(payload, 80)


@settings(deadline=None)
@given(changes, st.data())
def test_a_damaged_payload_is_refused_or_gives_other_changes(values, data):
    """The file's own checksum has caught the damage before; here nothing else may happen."""
    payload = bytearray(deltas.encode(np.array(values, np.int32), 8))
    if data.draw(st.booleans()):
        payload = payload[:data.draw(st.integers(0, len(payload)))]
    elif payload:
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        k, step = deltas.decode(bytes(payload), len(values))
    except lc.BitstreamError as error:
        assert "\n" not in str(error)
    else:
        assert k.shape == (len(values),) and 0 < step <= 1
