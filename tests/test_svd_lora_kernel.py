"""The low-rank update kernel against the numpy lines that define it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_comp import _C


def twin(y, x, u, s, v, scale):
    """y + scale ((x V) * s) U^T in float64."""
    y, x, u, s, v = (array.astype(np.float64) for array in (y, x, u, s, v))
    return y + scale * ((x @ v) * s) @ u.T


def update(y, x, u, s, v, scale, stream=None):
    """In place on tensors whose rows may lie apart."""
    rank = s.numel()
    addresses = [tensor.data_ptr() for tensor in (y, x, u, s, v)]
    _C.low_rank_update(*addresses, y.stride(0), x.stride(0), len(x), x.shape[1], y.shape[1], rank, scale, stream)


def random_problem(seed, n, features, rank, gap):
    """x and y are the left parts of wider matrices: their rows lie `gap` elements apart."""
    rng = np.random.default_rng(seed)
    in_features, out_features = features
    wide = [rng.normal(size=(n, width + gap)).astype(np.float32) for width in (out_features, in_features)]
    u, s, v = (rng.normal(size=size).astype(np.float32) for size in ((out_features, rank), rank, (in_features, rank)))
    return *wide, u, s, v


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 40),
    features=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    rank=st.integers(1, 16),
    gap=st.integers(0, 5),
)
def test_agrees_with_its_twin(device, seed, n, features, rank, gap):
    arrays = random_problem(seed, n, features, rank, gap)
    wide_y, wide_x, u, s, v = (torch.tensor(array, device=device) for array in arrays)
    y, x = wide_y[:, : features[1]], wide_x[:, : features[0]]
    expected = twin(y.cpu().numpy(), x.cpu().numpy(), *arrays[2:], scale=2.0)
    stream = torch.cuda.current_stream().cuda_stream if device == "cuda" else None
    update(y, x, u, s, v, 2.0, stream)
    tolerance = 1e-5 * max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(y.cpu().numpy(), expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(wide_y[:, features[1] :].cpu().numpy(), arrays[0][:, features[1] :])


@pytest.mark.parametrize("rank", [0, 17])
def test_a_rank_beyond_sixteen_is_refused(rank):
    with pytest.raises(ValueError, match=r"rank must lie in \[1, 16\]"):
        update(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(3, rank), torch.zeros(rank), torch.zeros(4, rank), 1.0)


@pytest.mark.skipif(_C.has_cuda, reason="this build has CUDA")
def test_a_stream_without_cuda_is_refused():
    one = torch.ones(1, 1)
    with pytest.raises(RuntimeError, match="built without CUDA"):
        update(one, one, one, one[0], one, 1.0, stream=0)
