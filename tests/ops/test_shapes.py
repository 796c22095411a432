"""Every op refuses an argument whose shape does not fit the others, and names it: nothing is read out of bounds.

The compiled part by itself refuses the same: tests/csrc/test_entries.cpp shows that under AddressSanitizer.
"""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lora_comp import _C, ops, rans, shapes

WINDOW = 8


def test_the_example_of_a_table_runs():
    assert doctest.testmod(shapes).failed == 0


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def layer(inputs, outputs, *adapters):
    low_rank = normal(*adapters, outputs, 4), normal(*adapters, 4), normal(*adapters, inputs, 4)
    return ops.Layer(normal(outputs, inputs), normal(outputs), *low_rank)


def swin_block(**t):
    def of(name):
        return ops.Layer(*(t[f"{name}.{part}"] for part in ops.Layer._fields))

    norms = [(t[f"{name}.weight"], t[f"{name}.bias"]) for name in ("norm1", "norm2")]
    parts = ops.Parts(norms[0], of("qkv"), t["position"], of("proj"), norms[1], of("fc1"), of("fc2"))
    return ops.swin_block(t["x"], parts, WINDOW, 4)


def swin_arguments(*adapters):
    layers = {
        "qkv": layer(32, 96, *adapters),
        "proj": layer(32, 32, *adapters),
        "fc1": layer(32, 64, *adapters),
        "fc2": layer(64, 32, *adapters),
    }
    norms = {f"{name}.{part}": normal(32) for name in ("norm1", "norm2") for part in ("weight", "bias")}
    tensors = {f"{name}.{part}": t for name, own in layers.items() for part, t in own._asdict().items()}
    return {"x": normal(2, 8, 9, 32), "position": normal(2, 64, 64), **norms, **tensors}


def low_rank_arguments(*adapters):
    usv = {"u": normal(*adapters, 6, 4), "s": normal(*adapters, 4), "v": normal(*adapters, 5, 4)}
    return {"x": normal(3, 7, 5), "weight": normal(6, 5), "bias": normal(6), **usv}


def tables():
    cdfs = np.int32([[0, 30000, 60000, 65536]] * 2)
    return {"cdfs": cdfs, "sizes": np.int32([4, 4]), "offsets": np.int32([-1, -1])}


CODED = rans.encode(np.zeros(3, int), np.zeros(3, int), **tables())

# The op by keyword arguments, and arguments that fit. The plain definitions run where the kernels do not fit.
CALLS = {
    "svd_lora_linear": (lambda **t: ops.svd_lora_linear(**t, scale=2.0), low_rank_arguments()),
    "svd_lora_linear, an adapter an entry": (lambda **t: ops.svd_lora_linear(**t, scale=2.0), low_rank_arguments(3)),
    "svd_lora_linear, plain": (
        lambda **t: ops.svd_lora_linear(**{name: a.double() for name, a in t.items()}, scale=2.0),
        low_rank_arguments(),
    ),
    "merge": (
        lambda **t: ops.merge(**t, scale=2.0),
        {name: t for name, t in low_rank_arguments().items() if name not in ("x", "bias")},
    ),
    "window_attention": (
        lambda **t: ops.window_attention(**t, window=WINDOW, shift=4),
        {"qkv": normal(2, 9, 8, 3, 2, 16), "bias": normal(2, 64, 64)},
    ),
    "window_attention, plain": (
        lambda **t: ops.window_attention(**t, window=2, shift=1),
        {"qkv": normal(2, 9, 8, 3, 2, 16), "bias": normal(2, 4, 4)},
    ),
    "gdn": (
        lambda **t: ops.gdn(**t, inverse=False),
        {"x": normal(2, 32, 5, 6), "beta": torch.ones(32), "gamma": torch.ones(32, 32)},
    ),
    "gdn, plain": (
        lambda **t: ops.gdn(**t, inverse=True),
        {"x": normal(2, 7, 5, 6), "beta": torch.ones(7), "gamma": torch.ones(7, 7)},
    ),
    "swin_block": (swin_block, swin_arguments()),
    "swin_block, an adapter an image": (swin_block, swin_arguments(2)),
    "swin_block, plain": (lambda **t: swin_block(**{name: a.double() for name, a in t.items()}), swin_arguments()),
    "rans.encode": (rans.encode, {"symbols": np.zeros((2, 3), int), "indexes": np.zeros((2, 3), int), **tables()}),
    "rans.decode": (lambda **t: rans.decode(CODED, **t), {"indexes": np.zeros(3, int), **tables()}),
}
ARGUMENTS = [(call, name) for call, (_, arguments) in CALLS.items() for name in arguments]
ARGUMENTS.remove(("rans.decode", "indexes"))  # whose shape says how many symbols there are


def other_shape(shape, data):
    """The shape with a dimension more, a dimension less, or another size in one of them."""
    change = data.draw(st.sampled_from(["more", "less", "size"]))
    at = data.draw(st.integers(0, max(0, len(shape) - 1)))
    if change == "more" or not shape:
        return (*shape[:at], data.draw(st.integers(1, 3)), *shape[at:])
    if change == "less":
        return shape[:at] + shape[at + 1 :]
    size = data.draw(st.integers(0, 2 * shape[at] + 1).filter(lambda size: size != shape[at]))
    return (*shape[:at], size, *shape[at + 1 :])


# Arguments that are compared first, so that it may be another one that does not fit them.
FIRST = {"x", "qkv", "symbols", "weight", "s", "cdfs", "position", "fc1.weight"}


@pytest.mark.parametrize("call, name", ARGUMENTS)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_wrong_shape_is_a_value_error_that_names_the_argument(call, name, data):
    function, arguments = CALLS[call]
    given = arguments[name]
    shape = other_shape(given.shape, data)
    wrong = given.new_zeros(shape) if isinstance(given, torch.Tensor) else np.zeros(shape, given.dtype)
    wrong = {**arguments, name: wrong}
    if fits(call, name, given.shape, shape):
        assume(0 not in shape)  # not all definitions know a map without pixels
        function(**wrong)
        return
    with pytest.raises(ValueError) as caught:
        function(**wrong)
    message = str(caught.value)
    names = [n for n in arguments if message.startswith(n)]
    assert names and "must" in message and "\n" not in message
    assert name in FIRST or name.endswith(".s") or names == [name]


def fits(call, name, before, after):
    """Whether the op takes this shape too."""
    rest = len(before) == len(after) and [a == b for a, b in zip(after, before, strict=True)]
    if call.startswith("svd_lora_linear") and name == "x":
        return after[-1:] == before[-1:] and ("adapter" not in call or (len(after) > 1 and after[0] == before[0]))
    if call.startswith("gdn") and name == "x":
        return bool(rest) and rest[1]
    if call.startswith("swin_block") and name == "x":
        return bool(rest) and rest[3] and ("adapter" not in call or rest[0])
    if call.startswith("swin_block") and name == "position":
        return bool(rest) and all(rest[1:]) and after[0] > 0 and 32 % after[0] == 0
    if call.startswith("window_attention") and name == "qkv":
        return bool(rest) and all(rest[3:5])
    if call.startswith("rans") and name == "cdfs":
        assume(not rest or not rest[0])  # other entries than the sizes say are a wrong table, not a wrong shape
    return False


@pytest.mark.parametrize("call", ["svd_lora_linear", "window_attention", "gdn", "swin_block"])
def test_arguments_on_different_devices_are_named(call):
    function, arguments = CALLS[call]
    last = list(arguments)[-1]

    class Elsewhere(torch.Tensor):
        def get_device(self):
            return 0

    with pytest.raises(ValueError, match=f"^all arguments must be on one device, not .*{last} on"):
        function(**{**arguments, last: arguments[last].as_subclass(Elsewhere)})


@pytest.mark.parametrize("shift", [-1, 8])
def test_a_shift_beyond_the_window_is_refused(shift):
    qkv, bias = CALLS["window_attention"][1].values()
    with pytest.raises(ValueError, match=r"^shift must be in"):
        ops.window_attention(qkv, bias, 8, shift)


def test_the_compiled_part_compares_shapes_and_types_too():
    x, beta, gamma = normal(4, 32), torch.ones(32), torch.ones(32, 32)
    good = dict(x=x, beta=beta, gamma=gamma, inverse=False, y=torch.empty_like(x), threads=1)
    _C.gdn_forward(**good)
    for name, wrong in (
        ("beta", torch.ones(31)),
        ("gamma", torch.ones(32)),
        ("gamma", torch.ones(32, 32).double()),
        ("gamma", torch.ones(32, 64)[:, ::2]),
        ("y", torch.empty(5, 32)),
        ("y", torch.empty(4, 32).bfloat16()),
        ("x", None),
    ):
        with pytest.raises(ValueError, match=f"^{name} must "):
            _C.gdn_forward(**{**good, name: wrong})
    with pytest.raises(ValueError, match=r"^fc1_u must have shape \(64, 3\), not \(63, 3\)"):
        wrong = ops.swin_block.__globals__["_block"]([t for t in dense()], low_rank(fc1_u=(63, 3)))
        x = normal(1, 8, 8, 32)
        _C.swin_block_forward(
            block=wrong,
            x=x,
            kept=None,
            window=8,
            shift=0,
            half=False,
            prompts=None,
            published_mask=False,
            y=x.clone(),
            threads=1,
        )


def dense():
    shapes = [(32,)] * 4 + [(2, 64, 64), (96, 32), (96,), (32, 32), (32,), (64, 32), (64,), (32, 64), (32,)]
    return [normal(*shape) for shape in shapes]


def low_rank(fc1_u):
    none = torch.empty(0)
    return [none] * 6 + [normal(*fc1_u), normal(3), normal(32, 3)] + [none] * 3
