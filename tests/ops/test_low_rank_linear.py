"""A linear layer with a low-rank update, against forming the updated weight."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import lora_comp as lc


def twin(x, weight, bias, u, s, v, scale):
    """x (W + scale U diag(s) V^T)^T + b."""
    return F.linear(x, weight + scale * u @ torch.diag(s) @ v.T, bias)


def problem(leading, inputs, outputs, rank, bias, seed, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=rng, dtype=dtype)

    return (normal(*leading, inputs), normal(outputs, inputs), normal(outputs) if bias else None,
            normal(outputs, rank), normal(rank), normal(inputs, rank))


problems = dict(
    leading=st.lists(st.integers(0, 4), max_size=3), inputs=st.integers(1, 20), outputs=st.integers(1, 20),
    rank=st.integers(1, 18), bias=st.booleans(), seed=st.integers(0, 99))


@settings(deadline=None, max_examples=60)
@given(**problems, scale=st.floats(-4, 4))
def test_it_is_the_layer_of_the_updated_weight(scale, **shapes):
    tensors = problem(**shapes)
    torch.testing.assert_close(lc.ops.svd_lora_linear(*tensors, scale), twin(*tensors, scale))


@settings(deadline=None, max_examples=30)
@given(**problems, scale=st.floats(-4, 4))
def test_merging_gives_the_same_weight(scale, **shapes):
    x, weight, bias, u, s, v = problem(**shapes)
    merged = F.linear(x, lc.ops.merge(weight, u, s, v, scale), bias)
    torch.testing.assert_close(merged, lc.ops.svd_lora_linear(x, weight, bias, u, s, v, scale))


def test_strided_input_in_float32():
    x, *rest = problem((6, 5, 4), 12, 8, 4, True, 0, torch.float32)
    turned = x.permute(2, 0, 1, 3)[:, ::2]
    assert not turned.is_contiguous()
    torch.testing.assert_close(lc.ops.svd_lora_linear(turned, *rest, 2.0), twin(turned, *rest, 2.0))


@pytest.mark.parametrize("bias", [True, False])
def test_gradients(bias):
    tensors = [t if t is None else t.requires_grad_() for t in problem((2, 3), 5, 4, 2, bias, 1)]
    assert torch.autograd.gradcheck(lambda *t: lc.ops.svd_lora_linear(*t, 2.0), tensors)
