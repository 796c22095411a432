"""The context of two steps: its parts, what may see what, and what it saves."""

import pytest
import torch

from lora_comp import api
from lora_comp.entropy.models import gaussian_likelihood, round_ste
from lora_comp.entropy.prior import quantise
from lora_comp.entropy.two_step import TwoStep


@pytest.fixture
def prior():
    torch.manual_seed(0)
    prior = TwoStep(6, context=4, hidden=8)
    torch.nn.init.normal_(prior.fuse[4].weight, std=0.3)
    return prior.requires_grad_(False)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 4), (8, 8)])
def test_the_parts_are_complementary_checkerboards(prior, size):
    first, second = (prior.part(step, torch.zeros(1, 6, *size)) for step in (0, 1))
    assert torch.equal(first, ~second)
    assert torch.equal(first[:3], second[3:])
    assert first[0, 0, 0] and (size[1] == 1 or not first[0, 0, 1])


def test_the_second_step_sees_the_first_and_the_first_sees_none(prior):
    y, hyper = torch.randn(1, 6, 4, 4, requires_grad=True), torch.randn(1, 12, 4, 4)
    second = prior.part(1, y)
    _, _, scales, means = quantise(prior, y, hyper, round_ste)
    (seen,) = torch.autograd.grad((scales + means)[:, second].sum(), y)
    assert (seen[0][~second] != 0).any() and (seen[0][second] == 0).all()
    _, _, scales, means = quantise(prior, y.detach(), hyper, round_ste)
    torch.testing.assert_close(scales[:, ~second], hyper[:, :6][:, ~second])
    torch.testing.assert_close(means[:, ~second], hyper[:, 6:][:, ~second])


def test_every_position_is_quantised_about_its_own_mean(prior):
    y, hyper = 3 * torch.randn(2, 6, 5, 7), torch.randn(2, 12, 5, 7)
    y_hat, _, _, means = quantise(prior, y, hyper, round_ste)
    torch.testing.assert_close((y_hat - means).round(), y_hat - means, atol=1e-5, rtol=0)
    assert ((y_hat - y).abs() <= 0.5 + 1e-5).all()


def test_a_new_context_changes_nothing():
    prior, hyper, y = TwoStep(6), torch.rand(1, 12, 4, 4), torch.randn(1, 6, 4, 4)
    _, _, scales, means = quantise(prior, y, hyper, round_ste)
    assert torch.equal(scales, hyper[:, :6]) and torch.equal(means, hyper[:, 6:])


def test_a_trained_context_saves_bits(trained_codec, make_image):
    """Against the Gaussians of the hyperprior alone, which the context was trained beside, not in place of."""
    with torch.no_grad():
        latents = trained_codec.latents(api.pad(make_image(256, 256)[None], 64))
        rate = trained_codec.rate(latents)
        scales, means = trained_codec.h_s(rate.predictions["z_hat"]).chunk(2, 1)
        alone = gaussian_likelihood(round_ste(latents["y"] - means) + means, scales, means)
    bits = [-p.log2().sum() for p in (rate.likelihoods["y"], alone)]
    assert bits[0] < 0.95 * bits[1]
