"""The fused window attention against the few lines of torch that define it."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strides import strided
from torch import Tensor

from lora_comp.ops import window_attention
from lora_comp.ops.window_attention import plain_window_attention, prompted_window_attention

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def problem(batch, height, width, heads, dim, window, seed, spread=1.0, device="cpu"):
    rng = torch.Generator().manual_seed(seed)
    n = window * window
    return (
        spread * torch.randn(batch, height, width, 3, heads, dim, generator=rng).to(device),
        torch.randn(heads, n, n, generator=rng).to(device),
    )


maps = dict(
    batch=st.integers(1, 3),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    heads=st.integers(1, 4),
    dim=st.integers(1, 32),
    window=st.sampled_from([4, 8]),
    seed=st.integers(0, 99),
)


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=60)
@given(**maps, shifts=st.booleans())
@example(batch=1, height=16, width=16, heads=4, dim=16, window=8, seed=0, shifts=True)
def test_it_is_what_torch_computes(device, shifts, **sizes):
    qkv, bias = problem(**sizes, device=device)
    window, shift = sizes["window"], sizes["window"] // 2 if shifts else 0
    expected = plain_window_attention(qkv.double(), bias.double(), window, shift)
    torch.testing.assert_close(window_attention(qkv, bias, window, shift), expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=40)
@given(**maps, shifts=st.booleans())
def test_gradients_are_those_of_float64(device, shifts, **sizes):
    window, shift = sizes["window"], sizes["window"] // 2 if shifts else 0
    inputs = [t.requires_grad_() for t in problem(**sizes, device=device)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    out = window_attention(*inputs, window, shift)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device)
    found = torch.autograd.grad((out * weight).sum(), inputs)
    expected = torch.autograd.grad((plain_window_attention(*doubles, window, shift) * weight).sum(), doubles)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5 * float(b.abs().max() + 1))


def test_large_logits_neither_overflow_nor_lose_the_largest():
    qkv, bias = problem(1, 8, 8, 2, 16, 8, 0, spread=30.0)
    expected = plain_window_attention(qkv.double(), bias.double(), 8, 0).float()
    torch.testing.assert_close(window_attention(qkv, bias, 8, 0), expected, rtol=1e-3, atol=1e-3)


def test_the_threads_change_no_bit():
    qkv, bias = (t.requires_grad_() for t in problem(2, 40, 24, 3, 12, 8, 0))
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        out = window_attention(qkv, bias, 8, 4)
        results.append([out, *torch.autograd.grad(out.square().sum(), (qkv, bias))])
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window, dim", [(8, 16), (8, 20), (4, 12)])
def test_gradients_in_bfloat16_are_near_those_of_float64(device, window, dim):
    """On a GPU the products are of bfloat16 numbers; on the CPU the ends alone."""
    qkv, bias = problem(2, 20, 12, 3, dim, window, 0, device=device)
    qkv, direction = qkv.bfloat16().requires_grad_(), torch.randn(2, 20, 12, 3 * dim).bfloat16().to(device)
    double = qkv.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(window_attention(qkv, bias, window, window // 2), qkv, direction)
    (expected,) = torch.autograd.grad(
        plain_window_attention(double, bias.double(), window, window // 2), double, direction.double()
    )
    assert float((found.double() - expected).norm() / expected.norm()) < 1e-2


@pytest.mark.parametrize("device", DEVICES)
def test_strided_input_and_bfloat16(device):
    qkv, bias = problem(2, 9, 17, 2, 16, 4, 0, device=device)
    torch.testing.assert_close(window_attention(strided(qkv), bias, 4, 2), window_attention(qkv, bias, 4, 2))
    half = window_attention(qkv.bfloat16(), bias, 4, 2)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), window_attention(qkv, bias, 4, 2), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("window, dim, dtype", [(2, 4, torch.float32), (8, 33, torch.float32), (8, 16, torch.float64)])
def test_other_sizes_and_types_take_the_definition(window, dim, dtype):
    qkv, bias = (t.to(dtype) for t in problem(1, 10, 7, 2, dim, window, 0))
    expected = plain_window_attention(qkv, bias, window, 1)
    assert torch.equal(window_attention(qkv, bias, window, 1), expected)


@pytest.mark.parametrize("layout", [Tensor.contiguous, strided])
def test_the_operator_keeps_torch_s_rules(layout):
    """Its fake and its gradient agree with itself, so that torch.compile and export take it, whatever the strides."""
    qkv, bias = (layout(t).requires_grad_() for t in problem(2, 8, 12, 2, 16, 4, 0))
    torch.library.opcheck(torch.ops.lora_comp.window_attention.default, (qkv, bias, 4, 2))
    inputs = (qkv.detach(), bias.detach(), layout(torch.randn(2, 8, 12, 2, 16)), 4, 2)
    for wants_bias in (False, True):
        torch.library.opcheck(torch.ops.lora_comp.window_attention_backward.default, (*inputs, wants_bias))


@pytest.mark.parametrize("layout", [Tensor.contiguous, strided])
def test_it_compiles(layout):
    qkv, bias = (layout(t) for t in problem(2, 8, 12, 2, 16, 4, 0))
    compiled = torch.compile(lambda q, b: window_attention(q, b, 4, 2) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(qkv, bias), 2 * window_attention(qkv, bias, 4, 2))


with_prompts = dict(
    height=st.integers(1, 5), width=st.integers(1, 5), window=st.sampled_from([4, 8]), seed=st.integers(0, 99)
)


@settings(deadline=None, max_examples=30)
@given(**with_prompts, shifts=st.booleans())
def test_prompts_that_repeat_the_tokens_change_nothing(height, width, window, seed, shifts):
    """A prompt for each token, with its key and value: every weight is halved, and counts twice."""
    qkv, bias = problem(2, 4 * height, 4 * width, 2, 8, window, seed)
    qkv, bias, shift = qkv.double(), torch.zeros_like(bias).double(), window // 2 if shifts else 0
    found = prompted_window_attention(qkv, qkv[..., 1:, :, :], bias, window, shift)
    torch.testing.assert_close(found, plain_window_attention(qkv, bias, window, shift))


@pytest.mark.parametrize("shift", [0, 4])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_a_prompt_is_seen_where_its_tokens_are(shift, size):
    """One prompt has a value: its first token's value reaches the same places."""
    qkv, bias = problem(1, *size, 2, 8, 8, seed=0)
    qkv[..., 2, :, :] = 0
    for i, j in [(0, 0), (1, 4), (size[0] // 2 - 1, size[1] // 2 - 1)]:
        token, prompts = qkv.clone(), torch.zeros(1, size[0] // 2, size[1] // 2, 2, 2, 8)
        token[:, 2 * i, 2 * j, 2], prompts[:, i, j, 1] = 1, 1
        reached = prompted_window_attention(qkv, prompts, bias, 8, shift).abs().sum(-1) > 1e-9
        assert torch.equal(reached, plain_window_attention(token, bias, 8, shift).abs().sum(-1) > 1e-9)
        assert 0 < reached.sum() <= 64


@pytest.mark.parametrize("shift", [0, 4])
def test_prompts_of_each_image_are_seen_in_it_alone(shift):
    (qkv, bias), prompts = problem(2, 12, 20, 2, 8, 8, seed=0), torch.randn(2, 5, 2, 2, 8)
    together = prompted_window_attention(qkv, prompts, bias, 8, shift)
    for i in range(2):
        alone = prompted_window_attention(qkv[i : i + 1], prompts[i], bias, 8, shift)
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("shift", [0, 4])
def test_prompts_for_every_window_are_seen_by_all(shift):
    """As keys without a direction, with a value of 1, beside tokens whose value is 0: P of P + N equal weights."""
    qkv, bias = torch.zeros(1, 16, 16, 3, 2, 8), torch.zeros(2, 64, 64)
    prompts = torch.stack([torch.zeros(16, 2, 8), torch.ones(16, 2, 8)], 1)
    found = prompted_window_attention(qkv, prompts, bias, 8, shift)
    assert found.min() >= 16 / (16 + 64) - 1e-6
    assert found.max() <= 16 / (16 + (64 if shift == 0 else 16)) + 1e-6  # 16 tokens on a side of a seam's corner


def test_images_of_a_batch_have_prompts_of_their_own():
    qkv, bias = problem(2, 16, 24, 2, 8, 8, seed=0)
    prompts = torch.randn(2, 8, 12, 2, 2, 8, generator=torch.Generator().manual_seed(1))
    both = prompted_window_attention(qkv, prompts, bias, 8, 4)
    each = [prompted_window_attention(qkv[i : i + 1], prompts[i : i + 1], bias, 8, 4) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(each))


@pytest.mark.parametrize("shape", [(16, 1, 2, 8), (16, 2, 4, 8), (1, 5, 8, 2, 2, 8), (1, 8, 2, 2, 2, 8), (2, 8)])
def test_prompts_of_other_shapes_raise(shape):
    qkv, bias = problem(1, 16, 16, 2, 8, 8, seed=0)
    with pytest.raises(ValueError, match="prompts"):
        prompted_window_attention(qkv, torch.zeros(shape), bias, 8, 4)


@pytest.mark.parametrize("shape", [(16, 2, 2, 8), (1, 12, 20, 2, 2, 8)])
def test_gradients_reach_prompts_also_after_inference(shape):
    qkv, bias = problem(1, 24, 40, 2, 8, 8, seed=0)
    prompts = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        inferred = prompted_window_attention(qkv, prompts, bias, 8, 4)
    prompts.requires_grad_()
    found = prompted_window_attention(qkv, prompts, bias, 8, 4)
    torch.testing.assert_close(found, inferred.clone())
    found.square().sum().backward()
    assert prompts.grad.flatten(1).abs().sum(1).min() > 0
