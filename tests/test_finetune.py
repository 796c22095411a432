"""Gradient descent: best step per image, schedules, learning rates, `refine`, and independence within a batch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_comp import objective
from lora_comp.codecs import Output, Rate
from lora_comp.codecs.tic_v import GAIN, LAMBDAS
from lora_comp.entropy import updates
from lora_comp.finetune import Group, Schedule, _Descent, descend, linear
from lora_comp.methods import FitSettings, load_method
from lora_comp.methods.refine import refine
from lora_comp.methods.svd_lora import ENCODER_SHARES, LATENT_SHARE, OURS, published_factor
from lora_comp.objective import Objective, Tile
from lora_comp.ops.swin_block import HALF
from lora_comp.tasks import load_task


class Toy(nn.Module):
    """A model to fit, and its own codec: uniform images whose bits grow with brightness."""

    output = Output()

    def __init__(self, images=1):
        super().__init__()
        self.colour = nn.Parameter(torch.full((images, 3, 1, 1), 0.1))

    @property
    def codec(self):
        return self

    def latents(self, x):
        return {"y": self.colour * torch.ones(x.shape)}

    def rate(self, latents, rounding=None):
        return Rate(latents["y"], {"y": torch.exp2(-self.colour)})

    def synthesize(self, y_hat):
        return y_hat

    def bits(self):
        return 2 * self.colour.flatten(1).sum(1)


X = torch.full((1, 3, 8, 6), 0.7)


def objective_of(x, size, distortion, weight):
    """The objective of images of this size in one tile."""
    rows, columns = (slice(0, side) for side in size)
    tile = Tile((rows, columns), (slice(None), slice(None)), (rows, columns), 1.0, distortion)
    return Objective(x, size, [tile], weight)


def run(toy, x=X, size=(6, 5), weight=10.0, lr=0.04, schedule=OURS, **options):
    target = x[..., : size[0], : size[1]]
    goal = objective_of(x, size, lambda y: (y - target).square().mean((1, 2, 3)), weight)
    groups = [Group([toy.colour], lr)]
    return descend(lambda backward: goal.evaluate(toy, backward), groups, schedule=schedule, **options)


def value(colour, weight=10.0, size=(6, 5), target=0.7):
    """The objective that `run` minimises on a Toy, in closed form."""
    return weight * (colour - target) ** 2 + 3 * 3 * colour / (size[0] * size[1])


def test_the_objective_is_weighted_distortion_plus_bpp_without_padding():
    assert run(Toy(), steps=0).tolist() == [[pytest.approx(value(0.1), rel=1e-5)]]


@pytest.mark.skipif(not HALF, reason="the processor does not multiply in bfloat16")
def test_bfloat16_losses_match_float32_losses(codec, monkeypatch):
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), (64, 64))
    task = load_task("cls")
    targets = task.targets(x)

    def losses(half):
        monkeypatch.setattr(objective, "use_bf16", lambda device: half)
        adapted = load_method("svd_lora", codec, adapter=None).prepare(codec, x)
        goal = objective_of(x, (64, 64), lambda y: task.distortion(y, targets), 1.0)
        return adapted.fit(goal, FitSettings(4, lr=0.04))

    full, half = losses(False), losses(True)
    torch.testing.assert_close(half, full, rtol=0.03, atol=0)
    assert full[-1] < 0.97 * full[0]


def test_each_image_keeps_its_best_step():
    targets = 0.7, 0.9, 0.2
    toy, x = Toy(3), torch.tensor(targets)[:, None, None, None].expand(3, 3, 8, 6)
    losses = run(toy, x, steps=12, lr=0.5)  # overshoots, for the last image at every step
    assert losses.shape == (13, 3)
    first, second, last = losses.argmin(0).tolist()
    assert 0 < first < 12 and 0 < second < 12 and first != second and last == 0
    for colour, target, lowest in zip(toy.colour, targets, losses.amin(0).tolist(), strict=True):
        assert value(colour.mean().item(), target=target) == pytest.approx(lowest, rel=1e-5)


@pytest.mark.parametrize("lr", [10, 1e4, torch.inf])
def test_steps_that_only_raise_the_objective_are_undone(lr):
    toy = Toy()
    losses = run(toy, steps=3, lr=lr)
    assert not (losses[1:] < losses[0]).any()  # they may be NaN
    assert torch.equal(toy.colour, Toy().colour)


def test_zero_steps_change_nothing():
    toy = Toy()
    assert run(toy, steps=0).shape == (1, 1)
    assert torch.equal(toy.colour, Toy().colour)


def test_on_step_receives_the_mean_objective():
    reported = []
    losses = run(Toy(2), torch.cat([X, X / 2]), steps=3, on_step=lambda step, loss: reported.append((step, loss)))
    assert reported == list(enumerate(losses.mean(1).tolist()))


class NoRead(TorchDispatchMode):
    """Raises on operations that read a value from a tensor, which would synchronise a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", ["latents", "adapter"])
def test_steps_without_on_step_do_not_synchronise(codec, cls, make_image, monkeypatch, recipe):
    monkeypatch.setattr(torch.optim, "Adam", lambda groups, **_: torch.optim.SGD(groups))  # Adam reads its step count
    monkeypatch.setattr("lora_comp.methods.svd_lora.refine", lambda *_, **__: None)  # it reads values
    x = torch.stack([make_image(), make_image().flip(1)])
    adapted, targets = load_method("svd_lora", codec).prepare(codec, x, FitSettings(recipe=recipe)), cls.targets(x)
    goal = objective_of(x, (64, 64), lambda y: cls.distortion(y, targets), 500.0)
    settings = FitSettings(steps=2, lr=1e-3)
    with NoRead():
        adapted.fit(goal, settings)
        with pytest.raises(AssertionError):
            adapted.fit(goal, settings, on_step=lambda *_: None)


def test_steps_on_random_samples_keep_the_better_of_start_and_end():
    """Here the samples are all lower than any objective, which must not count."""
    for lr, moves in ((0.01, True), (10.0, False)):
        toy, prepared = Toy(), []
        goal = objective_of(X, (6, 5), lambda y: (y - 0.7).square().mean((1, 2, 3)), 10.0)

        def evaluate(backward, toy=toy, goal=goal):
            return goal.evaluate(toy, backward) - 100 * backward

        losses = descend(
            evaluate,
            [Group([toy.colour], lr)],
            4,
            OURS,
            sample=lambda step, steps, to=prepared: to.append((step, steps)),
        )
        assert prepared == [(0, 4), (1, 4), (2, 4), (3, 4)]
        assert (losses[:-1] < 0).all() and losses[-1] > 0
        kept = value(toy.colour.mean().item())
        assert kept == pytest.approx(losses[-1].item() if moves else value(0.1), rel=1e-4)


LINEAR = [1 - step / 40 for step in range(40)]
HALVED = [1] * 15 + [1 / 2] * 10 + [1 / 4] * 5 + [1 / 8] * 5 + [1 / 16] * 5  # at 15, 25, 30 and 35 of 40 steps


@pytest.mark.parametrize("factor, expected", [(linear, LINEAR), (published_factor, HALVED)])
def test_schedules_match_linear_decay_and_the_published_milestones(factor, expected):
    """With these betas, Adam's steps along a constant slope have the length of the learning rate."""

    class Slope(Toy):
        def latents(self, x):
            return {"y": x + 0 * self.colour}

        def rate(self, latents, rounding=None):
            return Rate(latents["y"], {"y": torch.exp2(-100 * self.colour)})

    toy = Slope()
    places = [toy.colour.mean().item()]
    schedule = Schedule(factor, betas=(0.0, 0.9))
    run(toy, steps=40, lr=1e-3, on_step=lambda *_: places.append(toy.colour.mean().item()), schedule=schedule)
    lengths = -torch.tensor(places[:-1], dtype=torch.float64).diff() / 1e-3
    torch.testing.assert_close(lengths, torch.tensor(expected, dtype=torch.float64), rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("recipe", ["latents", "adapter"])
def test_fitting_lowers_the_objective_and_is_deterministic(codec, make_image, recipe):
    fits, x = [], make_image()[None]
    goal = objective_of(x, (64, 64), lambda y: (y - x).square().mean((1, 2, 3)), 500.0)
    for _ in range(2):
        adapted = load_method("svd_lora", codec).prepare(codec, x, FitSettings(recipe=recipe))
        losses = adapted.fit(goal, FitSettings(steps=6, lr=0.04))
        fits.append((losses.flatten().tolist(), adapted.payloads()))
    assert fits[0] == fits[1]
    assert min(fits[0][0]) < 0.92 * fits[0][0][0]


def test_trained_latents_start_at_those_of_the_adapted_encoder(codec, make_image):
    x, method = make_image()[None], load_method("svd_lora", codec)
    with torch.no_grad():
        latents, adapter = (method.prepare(codec, x, FitSettings(recipe=r)).latents(x) for r in ("latents", "adapter"))
    assert all(torch.equal(latents[name], adapter[name]) for name in ("y", "z"))


def test_latents_are_trained_before_the_gains_of_a_codec_of_variable_rate(codec, make_image):
    x = make_image()[None]
    low, high = (load_method("svd_lora", codec.at(q)).prepare(codec.at(q), x) for q in (1, 6))
    assert torch.equal(low.y, high.y)
    assert torch.allclose(high.latents(x)["y"] * (LAMBDAS[0] / LAMBDAS[5]) ** GAIN, low.latents(x)["y"], rtol=1e-2)


@pytest.mark.parametrize("recipe", ["latents", "adapter", "published"])
def test_each_recipe_trains_its_parameters_at_their_learning_rates(codec, make_image, recipe):
    x = make_image()[None]
    adapted = load_method("svd_lora", codec).prepare(codec, x, FitSettings(recipe=recipe))
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    goal = objective_of(x, (64, 64), lambda y: (y - x).square().mean((1, 2, 3)), 500.0)
    descent = _Descent(lambda backward: goal.evaluate(adapted, backward), adapted.groups(1e-3), 10, OURS)
    descent.set_rates(0)
    descent.take_step()
    moved = {name: (p - before[name]).abs().max().item() for name, p in adapted.named_parameters()}
    encoder = {name: length for name, length in moved.items() if length and not name.endswith(".S.latent")}
    shares = {"y": LATENT_SHARE, **ENCODER_SHARES} if recipe != "published" else dict.fromkeys("yUSV", 1.0)
    kinds = {name.rpartition(".")[2] for name in encoder}
    assert kinds == ({"y"} if recipe == "latents" else {"S"})  # from S = 0 the gradients of U and V are 0
    for name, length in encoder.items():
        assert length == pytest.approx(shares[name.rpartition(".")[2]] * 1e-3, rel=1e-2)
    decoder = [length for name, length in moved.items() if name.endswith(".S.latent") and length]
    assert decoder and decoder == pytest.approx([1e-3] * len(decoder), rel=1e-2)


@pytest.fixture(params=["svd_lora", "lora"])
def fitted(request, codec, human, make_image, monkeypatch):
    """An adapted codec after a few steps on an image, before `refine`, and the objective."""
    x = make_image()[None]
    adapted = load_method(request.param, codec).prepare(codec, x, FitSettings(recipe="adapter"))
    goal = objective_of(x, (64, 64), lambda y: human.distortion(y, x), 500.0)
    with monkeypatch.context() as patch:
        patch.setattr("lora_comp.methods.svd_lora.refine", lambda *_, **__: None)
        adapted.fit(goal, FitSettings(steps=6, lr=0.04))
    return adapted, goal


def total_bits(adapted, goal):
    return (goal.pixels * goal.evaluate(adapted)).numpy()


def y_hat(adapted, goal):
    with torch.no_grad():
        return adapted.codec.rate(adapted.latents(goal.x)).y_hat


def test_refine_lowers_the_objective_and_keeps_the_latents(fitted):
    adapted, goal = fitted
    before, latents, payloads = total_bits(adapted, goal), y_hat(adapted, goal), adapted.payloads()
    refine(adapted, goal)
    assert torch.equal(y_hat(adapted, goal), latents)
    if adapted.symbols().shape[1] <= updates.FEW:
        assert total_bits(adapted, goal) < before - 10
    else:
        assert adapted.payloads() == payloads


def test_refine_never_raises_the_objective(fitted):
    adapted, goal = fitted
    objectives = [total_bits(adapted, goal)]
    for _ in range(3):
        refine(adapted, goal)
        objectives.append(total_bits(adapted, goal))
    assert objectives == sorted(objectives, reverse=True)


def test_the_payload_holds_the_refined_updates_and_step(fitted):
    adapted, goal = fitted
    refine(adapted, goal)
    k, step = updates.decode(*adapted.payloads(), adapted.symbols().shape[1])
    assert [k.tolist()] == adapted.symbols().tolist()
    assert [step] == (2.0**-adapted.exponent).tolist()
    updated = torch.cat([(q.value() - q.base).flatten() for q in adapted.transmitted()])
    torch.testing.assert_close(updated, step * torch.from_numpy(k).float(), rtol=0, atol=1e-6)


@pytest.fixture
def images(make_image):
    """Three dissimilar images: (3, 3, 64, 64)."""
    flat = torch.full((3, 64, 64), 0.5)
    return torch.stack([make_image(), flat, make_image(200, 300)[:, :64, -64:].flip(0)])


@pytest.mark.parametrize(
    "method, recipe", [("svd_lora", "latents"), ("svd_lora", "adapter"), ("svd_lora", "published"), ("lora", "adapter")]
)
def test_fitting_in_a_batch_matches_fitting_alone(codec, human, images, monkeypatch, method, recipe):
    monkeypatch.setattr(objective, "use_bf16", lambda device: False)
    monkeypatch.setattr("lora_comp.methods.svd_lora.refine", lambda *_, **__: None)
    settings = FitSettings(steps=5, lr=0.01, recipe=recipe)

    def fitted(x):
        adapted = load_method(method, codec).prepare(codec, x, settings)
        goal = objective_of(x, (64, 64), lambda y: human.distortion(y, x), 500.0)
        losses = adapted.fit(goal, settings)
        before = total_bits(adapted, goal)
        refine(adapted, goal, attempts=2)
        return losses, before, total_bits(adapted, goal), adapted.exponent

    together = fitted(images)
    for i, values in enumerate(together[0].T.tolist()):
        alone = fitted(images[i : i + 1])
        np.testing.assert_allclose(values, alone[0][:, 0], rtol=1e-3)
        assert [after[i] for after in together[1:]] == pytest.approx([after[0] for after in alone[1:]], rel=1e-3)
    assert (together[0].amin(0) < together[0][0]).all()
