"""The convolution in a quarter of the multiplications against the torch line that defines it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strides import strided
from torch import Tensor

from lora_comp.ops.conv import _fused, conv3x3, plain_conv3x3, products_of


def problem(batch, channels, more, out, size, seed=0):
    """x, weight, bias and the second map or None."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    weight = normal(out, channels + more, 3, 3) / (3 * (channels + more) ** 0.5)
    return normal(batch, channels, *size), weight, normal(out), normal(batch, more, *size) if more else None


def is_fused(*tensors):
    with torch.profiler.profile() as profile:
        conv3x3(*tensors)
    names = {event.name for event in profile.events()}
    return "lora_comp::conv3x3" in names


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 2),
    channels=st.sampled_from([16, 32, 48, 128]),
    more=st.sampled_from([0, 16, 64]),
    out=st.sampled_from([16, 32, 48, 64, 80]),
    size=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    relu=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_its_definition(batch, channels, more, out, size, relu, seed):
    tensors = problem(batch, channels, more, out, size, seed)
    y = conv3x3(*tensors, relu)
    expected = plain_conv3x3(*(t if t is None else t.double() for t in tensors), relu)
    assert y.shape == expected.shape
    assert (y - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(y, conv3x3(*tensors, relu, products_of(tensors[1])))


def test_one_kernel_computes_it_in_any_order_of_memory():
    x, weight, bias, more = problem(2, 32, 16, 16, (9, 14))
    y = conv3x3(x, weight, bias, more)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, weight, more)]
    assert torch.equal(y, conv3x3(last[0], last[1], bias, last[2]))
    assert is_fused(x, weight, bias, more)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_the_number_of_threads_changes_nothing():
    tensors = problem(2, 64, 16, 32, (70, 90))
    one = conv3x3(*tensors)
    torch.set_num_threads(3)
    try:
        three = conv3x3(*tensors)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, three)


@pytest.mark.parametrize("channels, out", [(12, 16), (16, 8), (3, 7)])
def test_other_channels_take_the_definition(channels, out):
    tensors = problem(1, channels, 0, out, (6, 7))
    assert not is_fused(*tensors)
    assert torch.equal(conv3x3(*tensors, True), plain_conv3x3(*tensors, True))


@pytest.mark.parametrize("trained", [0, 1, 2, 3])
def test_what_wants_a_gradient_takes_the_definition(trained):
    tensors = problem(1, 16, 16, 16, (6, 7))
    tensors[trained].requires_grad_()
    assert not is_fused(*tensors)
    conv3x3(*tensors).sum().backward()
    assert tensors[trained].grad.abs().sum() > 0
    with torch.no_grad():
        assert is_fused(*tensors)


def test_other_types_take_the_definition():
    tensors = [t.double() for t in problem(1, 16, 16, 16, (6, 7))]
    assert torch.equal(conv3x3(*tensors), plain_conv3x3(*tensors))
    with torch.autocast("cpu", torch.bfloat16):
        assert conv3x3(*problem(1, 16, 16, 16, (6, 7))).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: (2, 16, 7)}, "^x must have shape"),
        ({1: (16, 47, 3, 3)}, "^weight must have 48 inputs, not 47"),
        ({1: (16, 48, 3, 4)}, "^weight must have shape"),
        ({2: (17,)}, r"^bias must have shape \(16,\)"),
        ({3: (2, 32, 6, 8)}, "^more must have shape"),
        ({3: (1, 32, 6, 7)}, "^more must have shape"),
    ],
)
def test_a_wrong_shape_is_refused(change, message):
    tensors = list(problem(2, 16, 32, 16, (6, 7)))
    for i, shape in change.items():
        tensors[i] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        conv3x3(*tensors)


@pytest.mark.parametrize("more", [0, 16])
@pytest.mark.parametrize("layout", [Tensor.contiguous, strided])
def test_torch_checks_the_operator(layout, more):
    x, weight, bias, beside = problem(2, 16, more, 32, (5, 7))
    maps = [None if t is None else layout(t.permute(0, 2, 3, 1)) for t in (x, beside)]
    torch.library.opcheck(_fused, (*maps, layout(products_of(weight)), bias, True))


def test_it_can_be_compiled():
    tensors = problem(1, 16, 16, 16, (5, 7))
    compiled = torch.compile(lambda x: conv3x3(x, *tensors[1:]) * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tensors[0]), conv3x3(*tensors) * 2)
