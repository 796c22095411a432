"""The fused divisive normalisation against the torch lines that define it, and against CompressAI's layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strides import strided
from torch import Tensor

from lora_comp.codecs.tic import GDN
from lora_comp.entropy import models
from lora_comp.ops.gdn import _backward, _fused, gdn, plain_gdn


def problem(batch, channels, height, width, seed=0):
    """x and a gradient of y, in channels_last, and beta and gamma."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, batch, height, width, channels, generator=generator).permute(0, 1, 4, 2, 3)
    beta = 0.01 + torch.rand(channels, generator=generator)
    gamma = torch.rand(channels, channels, generator=generator) ** 4 / channels**0.5
    return x, grad, beta, gamma


def evaluate(operator, x, grad, beta, gamma, inverse):
    """y and the gradients of x, beta and gamma, in float64."""
    trained = [t.clone().requires_grad_() for t in (x, beta, gamma)]
    y = operator(*trained, inverse)
    return [t.double() for t in (y.detach(), *torch.autograd.grad(y, trained, grad.to(y.dtype)))]


def expected(*tensors, inverse):
    return evaluate(plain_gdn, *(t.double() for t in tensors), inverse)


def assert_near(got, wanted, tolerance):
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


SHAPES = dict(
    batch=st.integers(1, 3),
    channels=st.sampled_from([32, 64, 96, 160]),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    inverse=st.booleans(),
    seed=st.integers(0, 1000),
)


@settings(deadline=None, max_examples=40)
@given(**SHAPES)
def test_agrees_with_its_definition(batch, channels, height, width, inverse, seed):
    tensors = problem(batch, channels, height, width, seed)
    assert_near(evaluate(gdn, *tensors, inverse), expected(*tensors, inverse=inverse), 1e-5)


@settings(deadline=None, max_examples=40)
@given(**SHAPES)
def test_in_bfloat16_it_is_near_its_definition(batch, channels, height, width, inverse, seed):
    x, grad, beta, gamma = problem(batch, channels, height, width, seed)
    x, grad = x.bfloat16(), grad.bfloat16()
    got = evaluate(gdn, x, grad, beta, gamma, inverse)
    assert_near(got, expected(x, grad, beta, gamma, inverse=inverse), 1e-2)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e3, 1e12])
def test_small_and_large_numbers_keep_their_digits(size, inverse):
    x, grad, beta, gamma = problem(1, 32, 8, 8)
    tensors = size * x, grad, 1e-6 * beta, gamma
    assert_near(evaluate(gdn, *tensors, inverse), expected(*tensors, inverse=inverse), 1e-5)


def test_the_inverse_undoes_it_where_the_norm_is_constant():
    x, _, beta, gamma = problem(1, 64, 9, 9)
    torch.testing.assert_close(gdn(gdn(x, beta, 0 * gamma, False), beta, 0 * gamma, True), x)


@pytest.mark.parametrize("inverse", [False, True])
def test_any_order_of_memory_will_do(inverse):
    x, grad, beta, gamma = problem(2, 64, 10, 13)
    wanted = evaluate(gdn, x, grad, beta, gamma, inverse)
    first = evaluate(gdn, x.contiguous(), grad.contiguous(), beta, gamma.T.contiguous().T, inverse)
    wide = torch.zeros(2, 70, 20, 13)[:, 3:67, ::2]
    strided = evaluate(gdn, wide.copy_(x), grad.transpose(2, 3).contiguous().transpose(2, 3), beta, gamma, inverse)
    for got in (first, strided):
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert gdn(x.contiguous(), beta, gamma, inverse).is_contiguous(memory_format=torch.channels_last)


def test_the_number_of_threads_changes_nothing():
    tensors = problem(2, 64, 40, 31)
    one = evaluate(gdn, *tensors, True)
    torch.set_num_threads(3)
    try:
        three = evaluate(gdn, *tensors, True)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_frozen_parameters_get_no_gradient_and_change_none_of_x():
    x, grad, beta, gamma = problem(1, 64, 9, 9)
    wanted = evaluate(gdn, x, grad, beta, gamma, False)[1]
    x.requires_grad_()
    gdn(x, beta, gamma, False).backward(grad)
    assert torch.equal(x.grad.double(), wanted)
    for i, trained in enumerate((beta, gamma)):
        trained.requires_grad_()
        y = gdn(x.detach(), beta, gamma, False)
        y.backward(grad)
        assert trained.grad.shape == trained.shape and (beta, gamma)[1 - i].grad is None
        trained.grad = None
        trained.requires_grad_(False)


@pytest.mark.parametrize("channels, dtype", [(33, torch.float32), (48, torch.bfloat16), (64, torch.float64)])
def test_other_sizes_and_types_take_the_definition(channels, dtype):
    x, _, beta, gamma = problem(1, channels, 5, 6)
    assert torch.equal(gdn(x.to(dtype), beta, gamma, True), plain_gdn(x.to(dtype), beta, gamma, True))


def test_an_image_without_pixels_stays_one():
    x, _, beta, gamma = problem(1, 32, 0, 4)
    assert gdn(x, beta, gamma, False).shape == x.shape


@pytest.mark.parametrize("inverse", [False, True])
def test_under_autocast_it_gives_what_the_next_convolution_takes(inverse):
    x, grad, beta, gamma = problem(1, 64, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = gdn(x, beta, gamma, inverse)
        got = evaluate(gdn, x, grad, beta, gamma, inverse)
    assert y.dtype == torch.bfloat16
    assert_near(got, expected(x, grad, beta, gamma, inverse=inverse), 1e-2)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_layer_of_the_codec_is_that_of_compressai(inverse):
    """Under the same names, of the same values, with the same gradients of what it is trained by."""
    ours, theirs = GDN(64, inverse=inverse), models.GDN(64, inverse=inverse)
    x, grad, *_ = problem(2, 64, 12, 12)
    ours.gamma.data += 0.05 * torch.rand(64, 64)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        trained = [x.clone().requires_grad_(), layer.beta, layer.gamma]
        y = layer(trained[0])
        results.append([y, *torch.autograd.grad(y, trained, grad)])
    assert_near(*results, 1e-5)


@pytest.mark.parametrize("layout", [Tensor.contiguous, strided])
def test_torch_checks_the_operator(layout):
    x, grad, beta, gamma = problem(2, 32, 5, 7)
    x, grad, gamma = layout(x), layout(grad), layout(gamma)
    for trained in (False, True):
        torch.library.opcheck(_backward, (x, grad, beta, gamma, False, trained))
    torch.library.opcheck(_fused, (x.requires_grad_(), beta.requires_grad_(), gamma.requires_grad_(), False))


def test_it_can_be_compiled():
    x, _, beta, gamma = problem(1, 32, 5, 7)
    compiled = torch.compile(lambda x: gdn(x, beta, gamma, True) * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), gdn(x, beta, gamma, True) * 2)
