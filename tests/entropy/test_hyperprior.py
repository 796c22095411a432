"""Coding of latents: exact, of the estimated length, with hints, and with errors for decoders that differ."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import lora_comp as lc
from lora_comp import _C, api, ops, rans
from lora_comp.entropy.coder import HINT, MARGIN, MEAN, REFINED, CodedLatents
from lora_comp.entropy.grid import MIDWAY, rounded
from lora_comp.entropy.hyperprior import HyperpriorCoder
from lora_comp.entropy.tables import BETWEEN, SCALES, gaussian_tables

SIZES = [(1, 1), (63, 65), (64, 64), (1, 300), (130, 200)]


def latents(codec, image):
    with torch.no_grad():
        return codec(api.pad(image[None], codec.stride))


@pytest.fixture(scope="module", params=["mean-scale", "two-step", "slices"])
def codec(request, codec, fixed_rate_codec, stf):
    return {"mean-scale": fixed_rate_codec, "two-step": codec, "slices": stf}[request.param]


@pytest.fixture(scope="module")
def coder(codec):
    return HyperpriorCoder(codec)


@pytest.mark.parametrize("size", SIZES)
def test_the_decoded_latents_match_the_codec(codec, coder, make_image, size):
    out = latents(codec, make_image(*size))
    coded = coder.compress(out)
    y_hat = coder.decompress(coded, size)
    slices = codec.prior.grid is not None  # of which each has a residual of at most 1/2 and moves those after it
    differ = (y_hat - out["y_hat"]).abs() > (0.1 if slices else 1e-3)
    assert y_hat.shape == out["y_hat"].shape
    assert differ.float().mean() <= 1e-3  # a value midway between two integers may round either way in float64
    assert (y_hat - out["y"]).abs().max() <= (1 if slices else 0.5) + 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_file_sizes_match_the_likelihoods(codec, make_image, size):
    out = latents(codec, make_image(*size))
    estimated = sum(-p.double().log2().sum().item() for p in out["likelihoods"].values())
    real = 8 * len(lc.encode(make_image(*size), codec, method="none").data)
    assert abs(real - estimated) <= 0.01 * estimated + 8 * (30 + 5 * (1 + codec.prior.steps))


def test_decoded_latents_encode_to_the_same_bytes(codec, coder, make_image):
    out = latents(codec, make_image(64, 64))
    coded = coder.compress(out)
    again = coder.compress({"y": coder.decompress(coded, (64, 64)), "z": out["z_hat"]})
    assert again == coded


@pytest.mark.parametrize("sections", [[], [b""], [b""] * 9])
def test_another_number_of_sections_raises(coder, sections):
    with pytest.raises(lc.BitstreamError, match=f"the file has {len(sections)} sections of latents, but its codec has"):
        coder.decompress(CodedLatents(sections, 0), (64, 64))


@pytest.mark.parametrize("part", ["h_s weight", "h_s bias", "entropy_bottleneck quantiles"])
def test_a_decoder_with_other_weights_raises(codec, coder, make_image, part):
    other, (module, kind) = copy.deepcopy(codec), part.split()
    with torch.no_grad():
        [p for name, p in other.get_submodule(module).named_parameters() if name.endswith(kind)][-1].mul_(1.1).add_(0.2)
    out = latents(codec, make_image(64, 64))
    coded = coder.compress(out)
    if kind == "quantiles":
        coded = CodedLatents([coded.sections[0][::-1], *coded.sections[1:]], coded.symbols_crc)
    with pytest.raises(lc.BitstreamError):
        HyperpriorCoder(other).decompress(coded, (64, 64))


def test_bytes_of_another_image_raise(codec, coder, make_image):
    one, two = (
        coder.compress(out) for out in (latents(codec, make_image(64, 64)), latents(codec, make_image(64, 64).flip(2)))
    )
    with pytest.raises(lc.BitstreamError):
        coder.decompress(CodedLatents([one.sections[0], *two.sections[1:]], one.symbols_crc), (64, 64))


def test_building_a_coder_does_not_change_the_codec(codec):
    before = {k: (v.clone(), v.dtype, v.device) for k, v in codec.state_dict().items()}
    HyperpriorCoder(codec)
    after = codec.state_dict()
    assert all(
        torch.equal(v, after[k]) and (d, e) == (after[k].dtype, after[k].device) for k, (v, d, e) in before.items()
    )


def disturbed(function):
    """A method of a coder whose float64 results are a little off, as on another machine."""
    rng = np.random.default_rng(0)

    def of_another_machine(*args):
        results = function(*args)
        made = [
            a + rng.uniform(-1e-12, 1e-12, a.shape) if isinstance(a, np.ndarray) and a.dtype == float else a
            for a in (results if isinstance(results, tuple) else [results])
        ]
        return tuple(made) if isinstance(results, tuple) else made[0]

    return of_another_machine


@pytest.mark.parametrize("midway", [MIDWAY, 1e-2])
def test_slices_decode_to_the_same_bits_where_predictions_differ(stf, make_image, monkeypatch, midway):
    """The margin is widened so that some values lie within it."""
    monkeypatch.setattr("lora_comp.entropy.grid.MIDWAY", midway)
    out = latents(stf, make_image(130, 200))
    here, elsewhere = HyperpriorCoder(stf), HyperpriorCoder(stf)
    coded = here.compress(out)
    choices = np.frombuffer(coded.hints, HINT)["choice"]
    assert midway == MIDWAY or {MEAN, MEAN + 1, REFINED, REFINED + 1} <= set(choices.tolist())
    for name in ("predict", "refine"):
        monkeypatch.setattr(elsewhere, name, disturbed(getattr(elsewhere, name)))
    assert torch.equal(elsewhere.decompress(coded, (130, 200)), here.decompress(coded, (130, 200)))


def test_slices_without_the_hints_of_the_file_are_refused(stf, make_image, monkeypatch):
    """The other side of a multiple is taken for the values midway."""
    monkeypatch.setattr("lora_comp.entropy.grid.MIDWAY", 1e-2)
    coder = HyperpriorCoder(stf)
    coded = coder.compress(latents(stf, make_image(130, 200)))
    hints = np.frombuffer(coded.hints, HINT).copy()
    hints["choice"] ^= 1
    with pytest.raises(lc.BitstreamError):
        coder.decompress(CodedLatents(coded.sections, coded.symbols_crc, hints.tobytes()), (130, 200))


def code(y, means, scales, margin=MARGIN, threads=1):
    """Bytes, symbols and hints of float32 (n,) under float64 (n,) means and scales."""
    symbols = np.empty(y.shape, np.int32)
    data, hints = _C.encode_latents(y, means, scales, BETWEEN, *gaussian_tables(), margin, symbols, threads)
    return data, symbols, hints


def decode(data, means, scales, hints):
    symbols, y = np.empty(means.shape, np.int32), np.empty(means.shape, np.float32)
    _C.decode_latents(data, means, scales, BETWEEN, *gaussian_tables(), hints, symbols, y)
    return symbols, y


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([0, 1, 5, 1023, 1024, 1025, 5000]),
    spread=st.sampled_from([0.0, 1.0, 300.0, 2.0**20]),
)
def test_encode_latents_matches_numpy(seed, n, spread):
    """round(y - mean), half to even; the nearest table of each scale; then lora_comp.rans."""
    rng = np.random.default_rng(seed)
    y = (rng.normal(size=n) * spread).astype(np.float32)
    means = np.where(
        rng.random(n) < 0.2, y.astype(float) - 0.5, rng.normal(size=n) * spread
    )  # some midway between integers
    scales = rng.choice([0.0, -1.0, 1e9, *SCALES, *BETWEEN], n)
    symbols = np.rint(y - means).astype(np.int32)
    expected = rans.encode(symbols, np.searchsorted(BETWEEN, scales), *gaussian_tables())
    data, coded, hints = code(y, means, scales)
    assert data == expected
    np.testing.assert_array_equal(coded, symbols)
    decoded, y_hat = decode(data, means, scales, hints)
    np.testing.assert_array_equal(decoded, symbols)
    np.testing.assert_array_equal(y_hat, (means + symbols).astype(np.float32))


def test_a_million_latents_decode_with_any_number_of_threads():
    rng = np.random.default_rng(0)
    scales = np.exp(rng.uniform(np.log(0.05), np.log(400), 1_200_000))
    means, noise = rng.normal(size=(2, *scales.shape))
    y = (means + noise * scales).astype(np.float32)
    data, symbols, hints = code(y, means, scales)
    assert code(y, means, scales, threads=3)[0] == data
    np.testing.assert_array_equal(decode(data, means, scales, hints)[0], symbols)
    assert len(hints) <= 2  # one in 60 million is expected


def test_hints_make_decoding_robust_to_rounding_of_scales():
    """Half of the scales are so near a boundary that a relative change of 1e-12 selects another table."""
    rng = np.random.default_rng(0)
    off = rng.choice([-1e-14, 1e-14, 0.01, -0.01], 20_000)
    scales = rng.choice(BETWEEN, 20_000) * (1 + off)
    means = np.zeros_like(scales)
    y = (rng.normal(size=scales.shape) * scales).astype(np.float32)
    data, symbols, hints = code(y, means, scales)
    assert [position for position, _ in hints] == np.flatnonzero(abs(off) < MARGIN).tolist()
    for seed in range(5):
        elsewhere = scales * (1 + 1e-12 * np.random.default_rng(seed).uniform(-1, 1, scales.shape))
        assert (np.searchsorted(BETWEEN, elsewhere) != np.searchsorted(BETWEEN, scales)).mean() > 0.1
        np.testing.assert_array_equal(decode(data, means, elsewhere, hints)[0], symbols)


def test_without_hints_rounding_of_scales_changes_symbols():
    scales = np.repeat(BETWEEN, 50)
    y = (np.random.default_rng(0).normal(size=scales.shape) * scales).astype(np.float32)
    data, symbols, hints = code(y, np.zeros_like(scales), scales)
    assert len(hints) == len(scales)
    try:
        other, _ = decode(data, np.zeros_like(scales), scales * (1 + 1e-12), [])
    except lc.BitstreamError:
        return
    assert (other != symbols).any()


def test_hints_are_written_to_the_file(codec, make_image, monkeypatch):
    """The margin is widened so that some scales lie within it."""
    plain = lc.encode(make_image(130, 200), codec, method="none").data
    monkeypatch.setattr("lora_comp.entropy.hyperprior.MARGIN", 1e-3)
    data = lc.encode(make_image(130, 200), codec, method="none").data
    few, many = (lc.info(d).get("bytes_hints", 0) for d in (plain, data))
    assert many >= few + HINT.itemsize and few <= 2 * HINT.itemsize
    assert torch.equal(lc.decode(data, codec), lc.decode(plain, codec))


@pytest.mark.parametrize(
    "hints", [b"1234", np.array([(10**9, 0)], HINT).tobytes(), np.array([(0, 68)], HINT).tobytes()]
)
def test_invalid_hints_raise(codec, coder, make_image, hints):
    out = latents(codec, make_image(64, 64))
    coded = coder.compress(out)
    with pytest.raises(lc.BitstreamError, match="hint"):
        coder.decompress(CodedLatents(coded.sections, coded.symbols_crc, hints), (64, 64))


@pytest.mark.parametrize(
    "y, mean, scale",
    [(np.nan, 0, 1), (np.inf, 0, 1), (0, np.nan, 1), (0, 0, np.nan), (2.0**31, 0, 1), (-(2.0**31), 0, 1)],
)
def test_latents_that_are_not_finite_raise(y, mean, scale):
    arrays = np.float32([y]), np.float64([mean]), np.float64([scale])
    with pytest.raises(ValueError, match="finite"):
        code(*arrays)
    if not np.isfinite([mean, scale]).all():
        data, *_ = code(np.zeros(1, np.float32), np.zeros(1), np.ones(1))
        with pytest.raises(lc.BitstreamError):
            decode(data, *arrays[1:], [])


def test_the_margins_exceed_float64_rounding_errors(codec, make_image):
    """What a step predicts with reordered sums, from the same y_hat: its scales against the margin between tables; its
    means and refined latents, where there is a grid, against the margin midway between multiples."""
    coder = HyperpriorCoder(codec)
    y, z = (latents(codec, make_image(130, 200))[name] for name in "yz")
    z_symbols = (z[0].double() - coder.medians).round().numpy().astype(np.int32)
    (scales, values), (other_scales, other_values) = (predictions(coder, y, z_symbols, order) for order in (0, 1))
    assert 0 < np.abs(other_scales / scales - 1).max() < MARGIN / 1000
    if coder.prior.grid is not None:
        assert 0 < np.abs(other_values - values).max() < MIDWAY * coder.prior.grid / 1000


def predictions(coder, y, z_symbols, reordered):
    """All scales, at least the lowest table's; and all means and refined latents, before they are rounded. Reordered:
    the sums of linear and convolutional layers."""
    scales, means, refined, y_hat = (np.zeros(y.shape[1:]) for _ in range(4))
    with pytest.MonkeyPatch.context() as patch:
        if reordered:
            patch.setattr(ops.Layer, "__call__", in_pieces)
            patch.setattr(torch.nn.Conv2d, "forward", convolution_in_pieces)
        hyper = coder.hyper(z_symbols)
        for step in range(coder.prior.steps):
            part, means[part], scales[part] = coder.predict(step, hyper, y_hat)
            near = rounded(means[part], coder.prior.grid, [])
            y_hat[part] = near + np.rint(y[0].numpy()[part] - near)
            refined[part] = coder.refine(step, hyper, y_hat, part)
            y_hat[part] = rounded(refined[part], coder.prior.grid, [])
    return np.maximum(scales, BETWEEN[0] / 2), np.stack([means, refined])


def in_pieces(self, x, linear):
    return sum(x[..., i::3] @ self.weight[:, i::3].T for i in range(3)) + self.bias


def convolution_in_pieces(self, x):
    parts = (F.conv2d(x[:, i::3], self.weight[:, i::3], None, self.stride, self.padding) for i in range(3))
    return sum(parts) + self.bias[:, None, None]
