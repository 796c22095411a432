"""Which rates the images of a training batch have."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_comp.training.codec import weight
from lora_comp.training.rates import Rates

ALL = Rates((1, 2, 3, 4, 5, 6), weight)


def test_a_codec_of_one_rate_point_has_it_for_all_images():
    quality, of_bpp, of_distortion = Rates((2,), lambda quality: 7.0).draw(step=3, count=4)
    assert quality.tolist() == [2] * 4 and of_bpp.tolist() == [1] * 4 and of_distortion.tolist() == [7] * 4


@given(step=st.integers(0, 10**6), count=st.integers(1, 64))
def test_each_image_of_a_batch_has_its_part_of_the_range(step, count):
    quality, _, _ = ALL.draw(step, count)
    width = 5 / count
    first = 1 + width * torch.arange(count)
    assert (quality >= first - 1e-4).all() and (quality <= first + width + 1e-4).all()


def test_batches_of_one_image_cover_the_range_evenly():
    qualities = torch.cat([ALL.draw(step, 1)[0] for step in range(50)])
    counts = torch.histc(qualities, bins=10, min=1, max=6)
    assert counts.min() >= 4 and counts.max() <= 6


def test_no_rate_drowns_the_others():
    """The weights of bits and distortion have the ratio lambda 255^2, and the product of both is constant."""
    quality, of_bpp, of_distortion = ALL.draw(step=0, count=6)
    expected = torch.tensor([weight(q) for q in quality.tolist()])
    torch.testing.assert_close(of_distortion / of_bpp, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(of_distortion * of_bpp, torch.full((6,), weight(4)), rtol=1e-5, atol=0)


def test_the_middle_rate_point_weighs_as_in_a_training_of_its_own():
    assert ALL.balance(weight(4)) == pytest.approx(1)
