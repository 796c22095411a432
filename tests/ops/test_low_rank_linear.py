"""A linear layer with a low-rank update: the fused kernels against the lines of torch that define it, in float64."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strides import strided
from torch import Tensor
from torch.nn import functional as F

from lora_comp.ops import merge, svd_lora_linear
from lora_comp.ops.svd_lora import plain_svd_lora_linear

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # of the sum of absolute values; found: 1.6e-7 and 3.3e-3


def problem(leading, inputs, outputs, rank, bias=True, seed=0, dtype=torch.float32, batched=False, device="cpu"):
    """x, weight and bias of `dtype`; u, s and v of float32, one each for every entry of x if batched."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=rng).to(device, dtype)

    adapters = leading[:1] if batched else []
    return [
        normal(*leading, inputs, dtype=dtype),
        normal(outputs, inputs, dtype=dtype),
        normal(outputs, dtype=dtype) if bias else None,
        normal(*adapters, outputs, rank),
        normal(*adapters, rank),
        normal(*adapters, inputs, rank),
    ]


def doubles(tensors):
    return [t if t is None else t.detach().double() for t in tensors]


def assert_near(found, expected, tolerance, size=None):
    """`size`: the sums of the absolute values of what `expected` sums, whose terms may cancel each other."""
    assert found.shape == expected.shape
    scale = float((expected if size is None else size).norm())
    assert float((found.double() - expected).norm()) <= tolerance * scale + 1e-30


def gradients(layer, tensors, scale=2.0, change=lambda t: t):
    """y, and its gradients of x, u, s, v along the same random direction; `change` is of all that these are sums of."""
    x, weight, bias, *usv = [t if t is None else change(t) for t in tensors]
    wanted = [t.detach().requires_grad_() for t in (x, *usv)]
    y = layer(wanted[0], weight, bias, *wanted[1:], scale)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.device).to(torch.bfloat16)
    return [y.detach(), *torch.autograd.grad(y, wanted, change(direction).to(y.dtype))]


def assert_all_near(found, tensors, tolerance):
    """y and its gradients against the definition in float64."""
    expected = gradients(plain_svd_lora_linear, doubles(tensors))
    sizes = gradients(plain_svd_lora_linear, doubles(tensors), change=torch.abs)
    for a, b, size in zip(found, expected, sizes, strict=True):
        assert_near(a, b, tolerance, size)


problems = dict(
    leading=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    rank=st.integers(1, 18),
    bias=st.booleans(),
    batched=st.booleans(),
    seed=st.integers(0, 99),
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(deadline=None, max_examples=40)
@given(**problems)
@example(leading=[2, 4, 4], inputs=2, outputs=1, rank=1, bias=True, batched=False, seed=0)  # its sums cancel
def test_values_and_gradients_are_those_of_float64(device, dtype, **shapes):
    tensors = problem(**shapes, dtype=dtype, device=device)
    assert_all_near(gradients(svd_lora_linear, tensors), tensors, TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "leading, inputs, outputs, rank",
    [([16, 64], 128, 384, 4), ([700], 33, 97, 4), ([5, 67], 64, 128, 255), ([2, 1], 300, 1, 5)],
)
def test_many_rows_and_the_largest_rank(device, leading, inputs, outputs, rank):
    tensors = problem(leading, inputs, outputs, rank, device=device)
    assert_all_near(gradients(svd_lora_linear, tensors), tensors, 1e-5)


@settings(deadline=None, max_examples=30)
@given(**problems, scale=st.floats(-4, 4))
def test_it_is_the_layer_of_the_updated_weight(scale, **shapes):
    x, weight, bias, u, s, v = doubles(problem(**{**shapes, "batched": False}))
    twin = F.linear(x, weight + scale * u @ torch.diag(s) @ v.T, bias)
    torch.testing.assert_close(F.linear(x, merge(weight, u, s, v, scale), bias), twin)
    torch.testing.assert_close(svd_lora_linear(x, weight, bias, u, s, v, scale), twin)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_each_entry_of_a_batch_has_its_own_adapter(device, dtype):
    x, weight, bias, u, s, v = problem([3, 5, 7], 20, 30, 4, dtype=dtype, batched=True, device=device)
    found = gradients(svd_lora_linear, [x, weight, bias, u, s, v])
    for i in range(3):
        y = svd_lora_linear(x[i], weight, bias, u[i], s[i], v[i], 2.0)
        torch.testing.assert_close(found[0][i], y, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)
    assert_all_near(found, [x, weight, bias, u, s, v], TOLERANCE[dtype])


def test_an_input_of_any_strides():
    x, *rest = problem([6, 5, 4], 12, 8, 4)
    for turned in (x.permute(2, 0, 1, 3)[:, ::2], x[..., :1, :].expand(6, 5, 4, 12), x.mT.contiguous().mT):
        assert not turned.is_contiguous()
        assert_all_near(gradients(svd_lora_linear, [turned, *rest]), [turned, *rest], 1e-5)


@pytest.mark.parametrize("leading, batched", [([0], False), ([3, 0], False), ([0, 4], True), ([2, 0], True)])
def test_no_rows_at_all(leading, batched):
    tensors = problem(leading, 6, 5, 2, batched=batched)
    y, *grads = gradients(svd_lora_linear, tensors)
    assert y.shape == (*leading, 5)
    assert all(not g.any() and g.shape == t.shape for g, t in zip(grads, (tensors[0], *tensors[3:]), strict=True))


@pytest.mark.parametrize("wanted", [[0], [4], [0, 4], [3, 5], [3, 4, 5]])
def test_only_wanted_gradients_are_given(wanted):
    tensors = problem([3, 40], 24, 36, 4)
    everything = dict(zip((0, 3, 4, 5), gradients(svd_lora_linear, tensors)[1:], strict=True))
    for i in wanted:
        tensors[i].requires_grad_()
    y = svd_lora_linear(*tensors, 2.0)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).bfloat16().float()
    y.backward(direction)
    for i, tensor in enumerate(tensors):
        assert (tensor.grad is None) == (i not in wanted)
        if i in wanted:
            torch.testing.assert_close(tensor.grad, everything[i])


@pytest.mark.parametrize("trained", [1, 2])
def test_a_weight_or_bias_that_is_trained_gets_its_gradient(trained):
    tensors, twins = problem([7], 5, 4, 2), problem([7], 5, 4, 2)
    for layer, values in ((svd_lora_linear, tensors), (plain_svd_lora_linear, twins)):
        values[trained].requires_grad_()
        layer(*values, 2.0).square().sum().backward()
    torch.testing.assert_close(tensors[trained].grad, twins[trained].grad)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_in_float64(bias):
    tensors = [t if t is None else t.requires_grad_() for t in doubles(problem([2, 3], 5, 4, 2, bias))]
    assert torch.autograd.gradcheck(lambda *t: svd_lora_linear(*t, 2.0), tensors)


def test_autocast_does_as_to_a_linear_layer():
    x, weight, bias, *usv = problem([50], 32, 48, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = svd_lora_linear(x, weight, bias, *usv, 2.0)
        assert y.dtype == F.linear(x, weight, bias).dtype == torch.bfloat16
    assert_near(y, plain_svd_lora_linear(*doubles([x, weight, bias, *usv]), 2.0), 1e-2)
    found = gradients(svd_lora_linear, [x.bfloat16(), weight.bfloat16(), bias.bfloat16(), *usv])
    assert [g.dtype for g in found] == [torch.bfloat16] * 2 + [torch.float32] * 3


def test_the_threads_change_no_bit():
    tensors = problem([3, 1100], 40, 24, 5, batched=True)
    results = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(gradients(svd_lora_linear, tensors))
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", [Tensor.contiguous, strided])
def test_the_operator_keeps_torch_s_rules(layout, dtype, batched):
    """Its fake and its gradient agree with itself, so that torch.compile and export take it, whatever the strides."""
    x, weight, bias, *usv = problem([2, 12], 8, 12, 3, dtype=dtype, batched=batched)
    x, weight, usv = layout(x), layout(weight), [layout(t) if t.dim() > 1 else t for t in usv]
    inputs = (x.requires_grad_(), weight, bias, *(t.requires_grad_() for t in usv), 2.0)
    torch.library.opcheck(torch.ops.lora_comp.svd_lora_linear.default, inputs)
    with torch.no_grad():
        y, t = torch.ops.lora_comp.svd_lora_linear(*inputs)
        tensors = [a.detach() for a in (layout(y), x, weight, *usv, t)]
    for wanted in ([True] * 4, [False, True, False, False]):
        torch.library.opcheck(torch.ops.lora_comp.svd_lora_linear_backward.default, (*tensors, 2.0, wanted))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_it_compiles(dtype):
    tensors = problem([2, 12], 8, 12, 3, dtype=dtype)
    compiled = torch.compile(svd_lora_linear, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, tensors), gradients(svd_lora_linear, tensors), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("x", (7, 9)),
        ("x", ()),
        ("weight", (4,)),
        ("bias", (5,)),
        ("u", (5, 2)),
        ("u", (4, 3)),
        ("u", (7, 4, 2)),
        ("s", (2, 2, 2)),
        ("s", (0,)),
        ("v", (6, 2)),
        ("v", (2, 5)),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name, shape):
    names = ("x", "weight", "bias", "u", "s", "v")
    tensors = dict(zip(names, problem([7], 5, 4, 2), strict=True)) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=f"^{name} must have shape .*not \\({', '.join(map(str, shape))}"):
        svd_lora_linear(*tensors.values(), 2.0)


def test_a_batch_without_its_adapters_is_refused():
    x, weight, bias, u, s, v = problem([3, 7], 5, 4, 2, batched=True)
    with pytest.raises(ValueError, match=r"^x must have shape \(3, 7, 5\), not \(2, 7, 5\)"):
        svd_lora_linear(x[:2], weight, bias, u, s, v, 2.0)
