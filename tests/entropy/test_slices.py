"""The context of channel slices: what may see what, residuals, and rounding that is equal on all machines."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_comp.entropy import grid
from lora_comp.entropy.models import round_ste
from lora_comp.entropy.prior import quantise
from lora_comp.entropy.slices import Slices

STEP = 2.0**-12


@pytest.fixture
def prior():
    torch.manual_seed(0)
    prior = Slices(8, slices=4, seen=2, hidden=(6,))
    for nets in (prior.scales, prior.means, prior.residuals):
        for net in nets:
            torch.nn.init.normal_(net[-1].weight, std=0.5)
    return prior.requires_grad_(False)


def test_the_parts_are_slices_of_channels(prior):
    parts = torch.stack([prior.part(step, torch.zeros(2, 8, 1, 3)) for step in range(prior.steps)])
    assert torch.equal(parts.nonzero()[:, 0], torch.arange(4).repeat_interleave(6))
    assert torch.equal(parts.sum(0), torch.ones(8, 1, 3, dtype=torch.long))


@pytest.mark.parametrize("step", range(4))
def test_a_slice_sees_those_before_it_up_to_the_first_two(prior, step):
    y, hyper = torch.randn(1, 8, 4, 4, requires_grad=True), torch.randn(1, 16, 4, 4)
    own = prior.part(step, y)
    _, _, scales, means = quantise(prior, y, hyper, round_ste)
    (of_y,) = torch.autograd.grad((scales + means)[:, own].sum(), y, allow_unused=True)
    seen = [bool((of_y[0, 2 * i : 2 * i + 2] != 0).any()) for i in range(4)]
    assert seen == [i < min(step, 2) for i in range(4)]


def test_scales_and_means_come_from_their_own_half_of_the_hyper_synthesis(prior):
    hyper = torch.randn(1, 16, 4, 4, requires_grad=True)
    for kind, values in enumerate(prior.predict(0, hyper, torch.zeros(1, 8, 4, 4))):
        (of_hyper,) = torch.autograd.grad(values.sum(), hyper)
        assert [bool(half.any()) for half in of_hyper.chunk(2, 1)] == [kind == 0, kind == 1]


def test_coded_values_are_integers_off_their_means_and_residuals_at_most_a_half(prior):
    y, hyper = 3 * torch.randn(2, 8, 5, 7), torch.randn(2, 16, 5, 7)
    y_hat, coded, _, means = quantise(prior, y, hyper, round_ste)
    torch.testing.assert_close((coded - means).round(), coded - means, atol=1e-5, rtol=0)
    assert ((coded - y).abs() <= 0.5 + 1e-5).all()
    residual = (y_hat - coded).abs()
    assert (residual > 0).all() and (residual <= 0.5 + 1e-5).all()


def test_gradients_of_y_hat_reach_every_network(prior):
    prior.requires_grad_(True)
    y_hat, _, scales, _ = quantise(prior, torch.randn(1, 8, 4, 4), torch.randn(1, 16, 4, 4), round_ste)
    (y_hat.square().sum() + scales.sum()).backward()
    assert all(p.grad is not None for p in prior.parameters())


def test_channels_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="a multiple of 5, the slices, not 8"):
        Slices(8, slices=5)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([1e-3, 1.0, 1e6]), error=st.floats(-1e-12, 1e-12))
def test_values_a_little_off_are_rounded_to_the_same_multiples(seed, spread, error):
    """Among them many that are midway between two multiples, to within rounding errors."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(size=50) * spread, (np.rint(rng.normal(size=50) * 1e4) + 0.5) * STEP])
    sides = grid.undecided(values, STEP)
    multiples = grid.rounded(values, STEP, sides)
    assert {place for place, _ in sides} >= set(range(50, 100))
    assert np.abs(multiples - values).max() <= STEP / 2
    np.testing.assert_array_equal(multiples, np.rint(multiples / STEP) * STEP)
    np.testing.assert_array_equal(grid.rounded(values + error, STEP, sides), multiples)
