"""The fused Swin block against the torch lines that define it: values and gradients, float32 and bfloat16."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strides import strided
from torch import Tensor

from lora_comp import _C
from lora_comp.ops.swin_block import (
    Layer,
    Parts,
    _backward,
    _fused,
    plain_prompted_swin_block,
    plain_swin_block,
    prompted_swin_block,
    swin_block,
)

half_only = pytest.mark.skipif(not _C.swin_block_half(), reason="the processor does not multiply in bfloat16")


def random_parts(channels, heads, hidden, ranks, images=None, seed=0):
    """Of random tensors; ranks of qkv, proj, fc1 and fc2. With `images`, low-rank tensors for each of them."""
    generator = torch.Generator().manual_seed(seed)
    many = () if images is None else (images,)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    def layer(inputs, outputs, rank):
        weight, bias = normal(outputs, inputs) / inputs**0.5, normal(outputs) / 10
        if not rank:
            return Layer(weight, bias)
        u, s, v = normal(*many, outputs, rank) / outputs**0.5, normal(*many, rank), normal(*many, inputs, rank)
        return Layer(weight, bias, u, s, v / inputs**0.5)

    def norm():
        return 1 + normal(channels) / 10, normal(channels) / 10

    return Parts(
        norm(),
        layer(channels, 3 * channels, ranks[0]),
        normal(heads, 64, 64),
        layer(channels, channels, ranks[1]),
        norm(),
        layer(channels, hidden, ranks[2]),
        layer(hidden, channels, ranks[3]),
    )


def convert(parts, change):
    def convert_layer(layer):
        return Layer(*(tensor if tensor is None else change(tensor) for tensor in layer))

    return Parts(
        tuple(map(change, parts.norm1)),
        convert_layer(parts.qkv),
        change(parts.position),
        convert_layer(parts.proj),
        tuple(map(change, parts.norm2)),
        convert_layer(parts.fc1),
        convert_layer(parts.fc2),
    )


def evaluate(block, x, parts, shift, grad, dense=False):
    """y, and the gradients of x, of all low-rank tensors and, if `dense`, of the block's own, in float64."""
    low_rank = [tensor for layer in parts.layers for tensor in layer[2:] if tensor is not None]
    trained = [tensor.requires_grad_() for tensor in (x.clone(), *low_rank, *(parts.dense() if dense else ()))]
    y = block(trained[0], parts, 8, shift)
    grads = torch.autograd.grad(y, trained, grad.to(y.dtype))
    assert all(g.dtype == t.dtype for g, t in zip(grads, trained, strict=True))
    return [t.double() for t in (y.detach(), *grads)]


def expected(x, parts, shift, grad, dense=False):
    return evaluate(plain_swin_block, x.double(), convert(parts, torch.Tensor.double), shift, grad.double(), dense)


def assert_near(got, wanted, tolerance):
    """Of parameters beside the gradient of x: theirs may be small differences of large numbers."""
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert (a - b).norm() <= tolerance * (b.norm() + (wanted[1].norm() if i > 1 else 0))


SHAPES = dict(
    batch=st.integers(1, 2),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    shift=st.integers(0, 7),
    channels=st.sampled_from([(32, 2), (64, 4), (96, 6), (64, 8), (96, 8)]),  # and heads: of 16, 16, 16, 8 and 12
    ranks=st.tuples(*[st.sampled_from([0, 1, 4, 17])] * 4),
    dense=st.booleans(),
    seed=st.integers(0, 1000),
)


@settings(deadline=None, max_examples=40)
@given(**SHAPES)
def test_agrees_with_its_definition(batch, size, shift, channels, ranks, dense, seed):
    parts = random_parts(*channels, 64, ranks, seed=seed)
    x, grad = torch.randn(2, batch, *size, channels[0], generator=torch.Generator().manual_seed(seed))
    assert_near(evaluate(swin_block, x, parts, shift, grad, dense), expected(x, parts, shift, grad, dense), 1e-5)


@half_only
@settings(deadline=None, max_examples=20)
@given(**SHAPES)
def test_in_bfloat16_it_is_near_its_definition(batch, size, shift, channels, ranks, dense, seed):
    parts = random_parts(*channels, 64, ranks, seed=seed)
    x, grad = torch.randn(2, batch, *size, channels[0], generator=torch.Generator().manual_seed(seed))
    with torch.autocast("cpu", torch.bfloat16):
        got = evaluate(swin_block, x, parts, shift, grad, dense)
    assert_near(got, expected(x, parts, shift, grad, dense), 1e-2)


def test_every_image_may_have_an_adapter_of_its_own():
    parts = random_parts(64, 4, 128, (4, 4, 0, 2), images=3)
    x, grad = torch.randn(2, 3, 16, 9, 64)
    y, grad_x, *grads = evaluate(swin_block, x, parts, 4, grad, dense=True)
    grads, dense_grads = grads[:9], grads[9:]
    total = [torch.zeros(()) for _ in dense_grads]
    for i in range(3):

        def of_image(layer, i=i):
            low_rank = () if layer.u is None else (layer.u[i].detach(), layer.s[i].detach(), layer.v[i].detach())
            return Layer(layer.weight, layer.bias, *low_rank)

        alone = Parts(
            parts.norm1,
            of_image(parts.qkv),
            parts.position,
            of_image(parts.proj),
            parts.norm2,
            of_image(parts.fc1),
            of_image(parts.fc2),
        )
        wanted = evaluate(swin_block, x[i : i + 1], alone, 4, grad[i : i + 1], dense=True)
        assert_near([y[i : i + 1], grad_x[i : i + 1], *(g[i] for g in grads)], wanted[:11], 1e-5)
        total = [a + b for a, b in zip(total, wanted[11:], strict=True)]
    assert_near([y, grad_x, *dense_grads], [y, grad_x, *total], 1e-5)


@pytest.mark.parametrize("dense", [False, True])
def test_a_map_that_wants_no_gradient_changes_none_of_the_others(dense):
    parts, x = random_parts(32, 2, 64, (4, 4, 4, 4)), torch.randn(1, 16, 16, 32)
    trained = [t.requires_grad_() for layer in parts.layers for t in layer[2:]] + [
        t.requires_grad_() for t in parts.dense() if dense
    ]
    direction = torch.randn_like(x)

    def gradients(x):
        return torch.autograd.grad(swin_block(x, parts, 8, 4), trained, direction)

    assert all(map(torch.equal, gradients(x), gradients(x.clone().requires_grad_())))


@pytest.mark.parametrize("dense", [False, True])
def test_a_map_too_large_to_keep_its_products_gets_the_same(dense, monkeypatch):
    parts = random_parts(64, 4, 128, (4, 4, 1, 2))
    x, grad = torch.randn(2, 2, 9, 20, 64)

    def run():
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
            return evaluate(swin_block, x, parts, 4, grad, dense), (2, 2, 3, 3 * 64 + 64 + 128, 64) in saved

    kept, keeps = run()
    monkeypatch.setitem(swin_block.__globals__, "MOST_KEPT", 0)
    again, keeps_again = run()
    assert (keeps, keeps_again) == (True, False)
    assert all(map(torch.equal, kept, again))


def test_the_backward_pass_takes_what_is_kept():
    parts = random_parts(32, 2, 64, (4, 4, 4, 4))
    x = torch.randn(1, 8, 8, 32, requires_grad=True)
    y, kept = _fused(x, None, parts.dense(), parts.low_rank(), 8, 4, False, False, True)
    (right,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    kept.data.zero_()
    assert not torch.allclose(right, torch.autograd.grad(y.sum(), x)[0])


def test_what_is_kept_serves_a_second_backward_pass():
    parts, x = random_parts(32, 2, 64, (4, 4, 4, 4)), torch.randn(1, 8, 8, 32, requires_grad=True)
    y = swin_block(x, parts, 8, 4)
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_one_layer_alone_may_have_an_adapter_for_each_image():
    parts = random_parts(32, 2, 64, (4, 0, 0, 0), images=2)
    parts = parts._replace(proj=random_parts(32, 2, 64, (0, 4, 0, 0)).proj)
    x, grad = torch.randn(2, 2, 8, 8, 32)
    assert_near(evaluate(swin_block, x, parts, 0, grad), expected(x, parts, 0, grad), 1e-5)


def test_adapters_for_another_number_of_images_are_refused():
    parts = random_parts(32, 2, 64, (4, 0, 0, 0), images=2)
    with pytest.raises(ValueError, match=r"^qkv.s must have shape \(3, rank_of_qkv\), not \(2, 4\)"):
        swin_block(torch.randn(3, 8, 8, 32), parts, 8, 0)


def test_the_number_of_threads_changes_nothing():
    parts = random_parts(64, 4, 128, (4, 4, 0, 0))
    x, grad = torch.randn(2, 2, 24, 24, 64)
    one = evaluate(swin_block, x, parts, 4, grad, dense=True)
    torch.set_num_threads(3)
    try:
        three = evaluate(swin_block, x, parts, 4, grad, dense=True)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_parameters_that_are_not_trained_get_no_gradient():
    parts = random_parts(32, 2, 64, (0, 0, 0, 0))
    parts.fc1.weight.requires_grad_()
    swin_block(torch.randn(1, 8, 8, 32), parts, 8, 0).sum().backward()
    assert parts.fc1.weight.grad.abs().sum() > 0
    assert [tensor.grad is None for tensor in parts.dense()].count(False) == 1


@pytest.mark.parametrize("window, channels, heads", [(4, 32, 2), (8, 40, 2), (8, 32, 1), (8, 96, 4)])
def test_sizes_that_the_kernel_does_not_know_are_computed_all_the_same(window, channels, heads):
    parts = random_parts(channels, heads, 64, (2, 0, 0, 0))
    tokens = window * window
    parts = parts._replace(position=parts.position[:, :tokens, :tokens])
    x = torch.randn(1, 8, 8, channels)
    torch.testing.assert_close(swin_block(x, parts, window, 0), plain_swin_block(x, parts, window, 0))


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("layout", [Tensor.contiguous, strided])
def test_torch_checks_the_operator(layout, dense, keeps):
    parts = random_parts(32, 2, 64, (4, 0, 0, 0))
    parts = parts._replace(position=layout(parts.position))
    own = [tensor.requires_grad_(dense) for tensor in parts.dense()]
    low_rank = [tensor.requires_grad_() if tensor.numel() else tensor for tensor in parts.low_rank()]
    x = layout(torch.randn(1, 8, 8, 32)).requires_grad_()
    torch.library.opcheck(_fused, (x, None, own, low_rank, 8, 4, False, False, keeps))
    own, low_rank = ([tensor.detach() for tensor in tensors] for tensors in (own, low_rank))
    y, kept = _fused(x.detach(), None, own, low_rank, 8, 4, False, False, keeps)
    wanted = [tensor.numel() > 0 for tensor in low_rank]
    given = x.detach(), None, layout(y), kept, own, low_rank, 8, 4, False, False
    torch.library.opcheck(_backward, (*given, True, False, dense, wanted))


def test_it_can_be_compiled():
    parts = random_parts(32, 2, 64, (4, 0, 0, 0))
    x = torch.randn(1, 8, 8, 32)
    compiled = torch.compile(lambda x: swin_block(x, parts, 8, 4) * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), swin_block(x, parts, 8, 4) * 2)


def evaluate_prompted(block, x, prompts, parts, shift, published, grad):
    """y, and the gradients of x and of prompts, in float64."""
    trained = [t.clone().requires_grad_() for t in (x, prompts)]
    y = block(*trained, parts, 8, shift, published)
    return [t.double() for t in (y.detach(), *torch.autograd.grad(y, trained, grad.to(y.dtype)))]


def expected_prompted(x, prompts, parts, shift, published, grad):
    tensors = x.double(), prompts.double(), convert(parts, torch.Tensor.double)
    return evaluate_prompted(plain_prompted_swin_block, *tensors, shift, published, grad.double())


@st.composite
def prompted(draw):
    """x, prompts, parts, shift, whether the published mask, and a gradient: of all that the kernel knows."""
    channels, heads = draw(st.sampled_from([(32, 2), (64, 4), (96, 6), (64, 8), (96, 8)]))
    batch, seed = draw(st.integers(1, 2)), draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    kind = draw(st.sampled_from(["everywhere", "map", "published"]))
    if kind == "everywhere":
        size, shift = draw(st.tuples(st.integers(1, 20), st.integers(1, 20))), draw(st.integers(0, 7))
        prompts = torch.randn(draw(st.integers(1, 64)), channels, generator=generator)
    else:
        d = draw(st.sampled_from([1, 2, 4, 8])) if kind == "map" else 2
        unit = d if kind == "map" else 8
        size = tuple(unit * draw(st.integers(1, 20 // unit)) for _ in range(2))
        shift = d * draw(st.integers(0, 8 // d - 1))
        prompts = torch.randn(batch, size[0] // d, size[1] // d, channels, generator=generator)
    parts = random_parts(channels, heads, 64, (0, 0, 0, 0), seed=seed)
    x, grad = torch.randn(2, batch, *size, channels, generator=generator)
    return x, prompts, parts, shift, kind == "published", grad


@settings(deadline=None, max_examples=60)
@given(prompted())
def test_with_prompts_it_agrees_with_its_definition(problem):
    assert_near(evaluate_prompted(prompted_swin_block, *problem), expected_prompted(*problem), 1e-5)


@half_only
@settings(deadline=None, max_examples=20)
@given(prompted())
def test_with_prompts_in_bfloat16_it_is_near_its_definition(problem):
    with torch.autocast("cpu", torch.bfloat16):
        got = evaluate_prompted(prompted_swin_block, *problem)
    assert_near(got, expected_prompted(*problem), 1e-2)


def prompted_kinds(side=16):
    """Prompts for x (2, side, side, 64): everywhere, and a map."""
    return {"everywhere": torch.randn(16, 64), "map": torch.randn(2, side // 2, side // 2, 64)}


@pytest.mark.parametrize("kind", prompted_kinds())
def test_with_prompts_neither_threads_nor_what_is_kept_change_anything(kind, monkeypatch):
    parts, (x, grad), prompts = random_parts(64, 4, 128, (0,) * 4), torch.randn(2, 2, 24, 24, 64), prompted_kinds(24)
    results = []
    for threads, most in ((1, 2**26), (3, 2**26), (1, 0)):
        torch.set_num_threads(threads)
        monkeypatch.setitem(swin_block.__globals__, "MOST_KEPT", most)
        results.append(evaluate_prompted(prompted_swin_block, x, prompts[kind], parts, 4, False, grad))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@pytest.mark.parametrize("kind", prompted_kinds())
def test_prompts_or_a_map_alone_get_the_same_gradient(kind, wanted):
    parts, x, prompts = random_parts(64, 4, 128, (0,) * 4), torch.randn(2, 16, 16, 64), prompted_kinds()[kind]

    def gradients(wanted):
        tensors = [t.clone().requires_grad_(w) for t, w in zip((x, prompts), wanted, strict=True)]
        prompted_swin_block(*tensors, parts, 8, 4).square().sum().backward()
        return [t.grad for t in tensors]

    both, one = gradients((True, True)), gradients(wanted)
    assert [g is None for g in one] == [not w for w in wanted]
    assert all(torch.equal(a, b) for a, b in zip(both, one, strict=True) if b is not None)


@pytest.mark.parametrize("of_the_block", ["rank", "gradient", "many", "published"])
def test_what_the_kernel_does_not_know_about_prompts_is_computed_all_the_same(of_the_block):
    parts = random_parts(32, 2, 64, (4 if of_the_block == "rank" else 0, 0, 0, 0))
    side = 12 if of_the_block == "published" else 8
    x, prompts = torch.randn(1, side, side, 32), torch.randn(1, side // 2, side // 2, 32)
    if of_the_block == "gradient":
        parts.proj.weight.requires_grad_()
    if of_the_block == "many":
        prompts = torch.randn(65, 32)
    y = prompted_swin_block(x, prompts, parts, 8, 4, of_the_block == "published")
    assert y.requires_grad == (of_the_block == "gradient")
    assert torch.equal(y, plain_prompted_swin_block(x, prompts, parts, 8, 4, of_the_block == "published"))


@pytest.mark.parametrize("shape", [(5, 31), (1, 4, 4, 64), (2, 3, 4, 64), (2, 5, 5, 64), (2, 1, 1, 64), (2, 4, 64)])
def test_prompts_of_a_wrong_shape_are_refused(shape):
    parts, x = random_parts(64, 4, 64, (0,) * 4), torch.randn(2, 8, 8, 64)
    with pytest.raises(ValueError, match=r"^prompts must have shape|^a map of prompts needs"):
        prompted_swin_block(x, torch.zeros(shape), parts, 8, 4)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("kind", prompted_kinds())
@pytest.mark.parametrize("layout", [Tensor.contiguous, strided])
def test_torch_checks_the_operator_with_prompts(layout, kind, keeps):
    parts = random_parts(64, 4, 64, (0,) * 4)
    x, prompts = layout(torch.randn(2, 16, 16, 64)).requires_grad_(), layout(prompted_kinds()[kind]).requires_grad_()
    of_block = parts.dense(), parts.low_rank(), 8, 4, False, False
    torch.library.opcheck(_fused, (x, prompts, *of_block, keeps))
    x, prompts = x.detach(), prompts.detach()
    y, kept = _fused(x, prompts, *of_block, keeps)
    torch.library.opcheck(_backward, (x, prompts, layout(y), kept, *of_block, True, True, False, [False] * 12))
