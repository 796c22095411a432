"""The likelihoods against CompressAI's, and their gradients in float64."""

import torch
from compressai.entropy_models import GaussianConditional
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_comp.entropy.models import (
    LIKELIHOOD_MIN,
    SCALE_MIN,
    bottleneck_likelihood,
    gaussian_likelihood,
    lower_bound,
    round_ste,
)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), shape=st.lists(st.integers(1, 6), min_size=4, max_size=4))
def test_gaussian_likelihood_matches_compressai(seed, shape):
    torch.manual_seed(seed)
    y, means = 8 * torch.randn(shape), torch.randn(shape)
    scales = torch.exp(2 * torch.randn(shape)) - 0.1  # some below SCALE_MIN, some negative
    theirs = GaussianConditional(None, scale_bound=SCALE_MIN).eval()
    y_hat, expected = theirs(y, scales, means=means)
    torch.testing.assert_close(gaussian_likelihood(y_hat, scales, means), expected, rtol=1e-4, atol=1e-6)


def test_bottleneck_likelihood_matches_compressai(codec):
    z = 4 * torch.randn(2, 64, 3, 5, generator=torch.Generator().manual_seed(0))
    z_hat, expected = codec.entropy_bottleneck(z)
    assert torch.equal(z_hat, (z - codec.medians[:, None, None]).round() + codec.medians[:, None, None])
    torch.testing.assert_close(bottleneck_likelihood(codec.entropy_bottleneck, z_hat), expected, rtol=1e-4, atol=1e-6)


def test_gaussian_likelihood_passes_gradcheck():
    rng = torch.Generator().manual_seed(0)
    y, means, scales = (torch.randn(3, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    scales = scales.abs() + 0.5
    assert torch.autograd.gradcheck(gaussian_likelihood, [t.requires_grad_() for t in (y, scales, means)])


def test_float32_gradients_match_float64():
    rng = torch.Generator().manual_seed(1)
    wide = [torch.randn(50, generator=rng, dtype=torch.float64) for _ in range(3)]
    gradients = []
    for dtype in (torch.float64, torch.float32):
        y, s, m = (t.to(dtype, copy=True).requires_grad_() for t in wide)
        gaussian_likelihood(2 * y, s.exp(), m).log2().sum().backward()
        gradients.append(torch.cat([y.grad, s.grad, m.grad]).double())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)


def test_improbable_values_have_the_minimal_likelihood():
    far = gaussian_likelihood(torch.tensor([1e4]), torch.tensor([0.1]), torch.tensor([0.0]))
    assert torch.equal(far, torch.tensor([LIKELIHOOD_MIN]))


def test_lower_bound_passes_gradients_that_raise_x():
    x = torch.tensor([0.5, 0.5, 2.0], requires_grad=True)
    (lower_bound(x, 1.0) * torch.tensor([1.0, -1.0, 1.0])).sum().backward()
    assert x.grad.tolist() == [0, -1, 1]


@given(st.floats(-1e6, 1e6, width=32))
def test_round_ste_rounds_exactly(value):
    x = torch.tensor(value, requires_grad=True)
    rounded = round_ste(x)
    rounded.backward()
    assert rounded.item() == x.detach().round().item()
    assert x.grad.item() == 1
