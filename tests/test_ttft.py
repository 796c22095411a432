"""The loop: it keeps each image's best step, and an image comes to the same in a batch as alone."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_comp import ttft
from lora_comp.entropy import deltas
from lora_comp.methods import load_method
from lora_comp.methods.svd_lora import LowRankLinear
from lora_comp.ops.swin_block import HALF
from lora_comp.parts import Part
from lora_comp.tasks import load_task


class Toy(nn.Module):
    """Something to fit: images of one colour that cost more bits the brighter they are."""

    def __init__(self, images=1):
        super().__init__()
        self.colour = nn.Parameter(torch.full((images, 3, 1, 1), 0.1))

    def analyse(self, x):
        return {"y_hat": self.colour * torch.ones(x.shape), "likelihoods": {"y": torch.exp2(-self.colour)}}

    def synthesize(self, y_hat):
        return y_hat

    def bits(self):
        return 2 * self.colour.flatten(1).sum(1)


def low_rank(adapted):
    return [m for m in adapted.codec.g_s.modules() if isinstance(m, LowRankLinear)]


X = torch.full((1, 3, 8, 6), 0.7)


def whole(size, distortion):
    """The one part of an image of this size."""
    rows, columns = (slice(0, side) for side in size)
    return [Part((rows, columns), (slice(None), slice(None)), (rows, columns), 1.0, distortion)]


def run(adapted, x=X, size=(6, 5), weight=10.0, lr=0.04, **options):
    target = x[..., : size[0], : size[1]]
    parts = whole(size, lambda y: (y - target).square().mean((1, 2, 3)))
    return ttft.fit(adapted, x, size, parts, weight, lr=lr, **options)


def objective(colour, weight=10.0, size=(6, 5), target=0.7):
    """What `run` minimises on a Toy, by hand."""
    return weight * (colour - target) ** 2 + 3 * 3 * colour / (size[0] * size[1])


def test_the_objective_is_weighted_distortion_plus_bits_per_pixel_of_the_image_itself():
    assert run(Toy(), steps=0).tolist() == [[pytest.approx(objective(0.1), rel=1e-5)]]


@pytest.mark.skipif(not HALF, reason="the processor does not multiply in bfloat16")
def test_steps_in_bfloat16_go_where_those_in_float32_go(codec, monkeypatch):
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), (64, 64))
    task = load_task("cls")
    targets = task.targets(x)

    def losses(half):
        monkeypatch.setattr(ttft, "use_bf16", lambda device: half)
        adapted = load_method("svd_lora", codec, adapter=None).prepare(codec, x)
        parts = whole((64, 64), lambda y: task.distortion(y, targets))
        return ttft.fit(adapted, x, (64, 64), parts, 1.0, 4, 0.04)

    full, half = losses(False), losses(True)
    torch.testing.assert_close(half, full, rtol=0.03, atol=0)
    assert full[-1] < 0.97 * full[0]


def test_each_image_is_left_at_its_own_best_step():
    targets = 0.7, 0.9, 0.2
    toy, x = Toy(3), torch.tensor(targets)[:, None, None, None].expand(3, 3, 8, 6)
    losses = run(toy, x, steps=12, lr=0.5)  # overshoots, of the last image each time
    assert losses.shape == (13, 3)
    first, second, last = losses.argmin(0).tolist()
    assert 0 < first < 12 and 0 < second < 12 and first != second and last == 0
    for colour, target, lowest in zip(toy.colour, targets, losses.amin(0).tolist(), strict=True):
        assert objective(colour.mean().item(), target=target) == pytest.approx(lowest, rel=1e-5)


@pytest.mark.parametrize("lr", [10, 1e4, torch.inf])
def test_steps_that_only_harm_are_undone(lr):
    toy = Toy()
    losses = run(toy, steps=3, lr=lr)
    assert not (losses[1:] < losses[0]).any()  # they may be no numbers
    assert torch.equal(toy.colour, Toy().colour)


def test_no_steps_change_nothing():
    toy = Toy()
    assert run(toy, steps=0).shape == (1, 1)
    assert torch.equal(toy.colour, Toy().colour)


def test_each_step_is_reported_with_its_mean_objective():
    told = []
    losses = run(Toy(2), torch.cat([X, X / 2]), steps=3, on_step=lambda step, loss: told.append((step, loss)))
    assert told == list(enumerate(losses.mean(1).tolist()))


class NoRead(TorchDispatchMode):
    """Operations that take a number out of a tensor, for which a GPU's steps would have to wait, are errors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("latents", [True, False])
def test_a_step_that_is_not_reported_waits_for_no_number(codec, cls, make_image, monkeypatch, latents):
    monkeypatch.setattr(torch.optim, "Adam", lambda groups, **_: torch.optim.SGD(groups))  # Adam reads its own count
    x = torch.stack([make_image(), make_image().flip(1)])
    adapted, targets = load_method("svd_lora", codec).prepare(codec, x if latents else None, 2), cls.targets(x)
    arguments = adapted, x, (64, 64), whole((64, 64), lambda y: cls.distortion(y, targets)), 500.0
    with NoRead():
        ttft.fit(*arguments, steps=2, lr=1e-3)
        with pytest.raises(AssertionError):
            ttft.fit(*arguments, steps=2, lr=1e-3, on_step=lambda *_: None)


LINEAR = [1 - step / 40 for step in range(40)]
HALVED = [1] * 15 + [1 / 2] * 10 + [1 / 4] * 5 + [1 / 8] * 5 + [1 / 16] * 5  # at 15, 25, 30 and 35 of 40 steps


@pytest.mark.parametrize("published, expected", [(False, LINEAR), (True, HALVED)])
def test_the_step_size_falls_linearly_or_is_halved_where_the_paper_says(published, expected):
    """Adam's first steps along a constant slope are as long as the step size."""

    class Slope(Toy):
        def analyse(self, x):
            return {"y_hat": x + 0 * self.colour, "likelihoods": {"y": torch.exp2(-100 * self.colour)}}

    toy = Slope()
    places = [toy.colour.mean().item()]
    run(toy, steps=40, lr=1e-3, on_step=lambda *_: places.append(toy.colour.mean().item()), published=published)
    lengths = -torch.tensor(places[:-1], dtype=torch.float64).diff() / 1e-3
    torch.testing.assert_close(lengths, torch.tensor(expected, dtype=torch.float64), rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("latents", [True, False])
def test_a_image_is_overfitted_and_alike_each_time(codec, human, make_image, latents):
    fits, x = [], make_image()[None]
    for _ in range(2):
        adapted = load_method("svd_lora", codec).prepare(codec, x if latents else None)
        fits.append((run(adapted, x, (64, 64), 500.0, steps=6).flatten().tolist(), adapted.payloads()))
    assert fits[0] == fits[1]
    losses = fits[0][0]
    assert min(losses) < 0.92 * losses[0]


def test_trained_latents_start_where_the_encoders_adapter_has_them(codec, make_image):
    x, method = make_image()[None], load_method("svd_lora", codec)
    with torch.no_grad():
        assert torch.equal(method.prepare(codec, x)(x)["x_hat"], method.prepare(codec)(x)["x_hat"])


@pytest.mark.parametrize("latents, trained", [(True, {"y"}), (False, {"U", "S", "V"})])
def test_the_encoder_trains_its_latents_or_its_adapter_and_each_at_its_own_step_size(
    codec, make_image, latents, trained
):
    x = make_image()[None]
    adapted = load_method("svd_lora", codec).prepare(codec, x if latents else None)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    run(adapted, x, (64, 64), 500.0, steps=1, lr=1e-3)
    moved = {name: (p - before[name]).abs().max().item() for name, p in adapted.named_parameters() if name in before}
    assert {name.rpartition(".")[2] for name in moved if ".g_a." in name} == trained
    for name, length in moved.items():
        share = ttft.SHARES[name.rpartition(".")[2]] if ".g_a." in name else 1
        assert length == 0 or length == pytest.approx(share * 1e-3, rel=1e-2)


@pytest.fixture(params=["svd_lora", "lora"])
def fitted(request, codec, human, make_image):
    """An adapted codec after a few steps on a make_image, and the rest of what they took."""
    adapted, x = load_method(request.param, codec).prepare(codec), make_image()[None]
    arguments = (x, (64, 64), whole((64, 64), lambda y: human.distortion(y, x)), 500.0)
    ttft.fit(adapted, *arguments, steps=6, lr=0.04)
    return adapted, arguments


@torch.no_grad()
def bits_in_all(adapted, x, size, parts, weight):
    out = adapted(x)
    rate = adapted.bits() - sum(p.log2().flatten(1).sum(1) for p in out["likelihoods"].values())
    return (weight * size[0] * size[1] * parts[0].distortion(out["x_hat"].clamp(0, 1)) + rate).numpy()


def test_refining_lowers_the_objective_and_leaves_the_latents_alone(fitted):
    adapted, arguments = fitted
    before, latents = bits_in_all(adapted, *arguments), adapted(arguments[0])["y_hat"]
    payloads = adapted.payloads()
    ttft.refine(adapted, *arguments)
    assert torch.equal(adapted(arguments[0])["y_hat"], latents)
    if adapted.whole().shape[1] <= deltas.FEW:
        assert bits_in_all(adapted, *arguments) < before - 10
    else:
        assert adapted.payloads() == payloads


def test_refining_again_never_harms(fitted):
    adapted, arguments = fitted
    objectives = [bits_in_all(adapted, *arguments)]
    for _ in range(3):
        ttft.refine(adapted, *arguments)
        objectives.append(bits_in_all(adapted, *arguments))
    assert objectives == sorted(objectives, reverse=True)


def test_the_file_carries_the_changes_and_the_step_that_refining_chose(fitted):
    adapted, arguments = fitted
    ttft.refine(adapted, *arguments)
    k, step = deltas.decode(*adapted.payloads(), adapted.whole().shape[1])
    assert [k.tolist()] == adapted.whole().tolist()
    assert [step] == (2.0**-adapted.exponent).tolist()
    carried = torch.cat(
        [m.value(n).flatten() - getattr(m, f"{n}_base").flatten() for m in low_rank(adapted) for n in m.travels]
    )
    torch.testing.assert_close(carried, step * torch.from_numpy(k).float(), rtol=0, atol=1e-6)


@pytest.fixture
def images(make_image):
    """Three that have little in common: (3, 3, 64, 64)."""
    flat = torch.full((3, 64, 64), 0.5)
    return torch.stack([make_image(), flat, make_image(200, 300)[:, :64, -64:].flip(0)])


@pytest.mark.parametrize(
    "method, recipe", [("svd_lora", "latents"), ("svd_lora", "adapter"), ("svd_lora", "published"), ("lora", "adapter")]
)
def test_a_image_comes_to_the_same_in_a_batch_as_alone(codec, human, images, monkeypatch, method, recipe):
    monkeypatch.setattr(ttft, "use_bf16", lambda device: False)

    def fitted(x):
        adapted = load_method(method, codec).prepare(codec, x if recipe == "latents" else None, len(x))
        arguments = x, (64, 64), whole((64, 64), lambda y: human.distortion(y, x)), 500.0
        losses = ttft.fit(adapted, *arguments, steps=5, lr=0.01, published=recipe == "published")
        before = bits_in_all(adapted, *arguments)
        ttft.refine(adapted, *arguments, attempts=2)
        return losses, before, bits_in_all(adapted, *arguments), adapted.exponent

    together = fitted(images)
    for i, values in enumerate(together[0].T.tolist()):
        alone = fitted(images[i : i + 1])
        np.testing.assert_allclose(values, alone[0][:, 0], rtol=1e-3)
        assert [after[i] for after in together[1:]] == pytest.approx([after[0] for after in alone[1:]], rel=1e-3)
    assert (together[0].amin(0) < together[0][0]).all()
