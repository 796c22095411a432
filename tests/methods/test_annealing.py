"""`refine=`: annealed rounding of the latents lowers the objective of an ordinary file, with any method and codec."""

import pytest
import torch

import lora_comp as lc
from lora_comp import objective
from lora_comp.api import encode_images
from lora_comp.methods import FitSettings, annealed, annealing, load_method, steps_of

STEPS = 12


def refined(codec, task, image, **options):
    return lc.encode(image, codec, task, **({"method": "none", "refine": STEPS} | options))


def objective_of(coded, codec, task, image):
    """The objective of a file as any decoder decodes it."""
    distortion = task.distortion(lc.decode(coded.data, codec)[None], task.targets(image[None])).item()
    return task.weight(codec.quality) * distortion + coded.bpp


@pytest.mark.parametrize("size", [(64, 64), (63, 65), (130, 70)])
@pytest.mark.parametrize("name", ["human", "cls"])
def test_a_refined_file_is_a_plain_one_of_lower_objective(request, codec, make_image, name, size):
    task, image = request.getfixturevalue(name), make_image(*size)
    plain, coded = (refined(codec, task, image, refine=steps) for steps in (0, STEPS))
    assert coded.method == lc.info(coded.data)["method"] == "none"
    assert "bytes_adapter" not in lc.info(coded.data)
    assert coded.loss_before == plain.loss_after
    assert coded.loss_after == pytest.approx(objective_of(coded, codec, task, image), rel=1e-5)
    assert coded.loss_after < 0.99 * plain.loss_after


def test_more_steps_gain_more(codec, human, make_image):
    losses = [refined(codec, human, make_image(), refine=steps).loss_after for steps in (0, 10, 60)]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 3


@pytest.mark.parametrize("method", ["none", "svd_lora"])
def test_without_refinement_files_are_as_before(codec, human, make_image, method):
    image = make_image()
    assert lc.encode(image, codec, human, method, refine=0) == lc.encode(image, codec, human, method)


@pytest.mark.parametrize("method", ["svd_lora", "lora"])
def test_refinement_follows_the_steps_of_a_method(codec, human, make_image, method):
    image = make_image()
    adapted, coded = (refined(codec, human, image, method=method, lr=5e-3, refine=steps) for steps in (0, 40))
    assert coded.method == lc.info(coded.data)["method"] == method
    assert coded.loss_after == pytest.approx(objective_of(coded, codec, human, image), rel=1e-5)
    assert coded.loss_after < 0.99 * adapted.loss_after


def test_refinement_is_deterministic_by_its_seed(codec, human, make_image):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (refined(codec, human, make_image(), seed=seed).data for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", ["none", "svd_lora"])
def test_refinement_that_does_not_help_is_undone(codec, human, make_image, monkeypatch, method):
    monkeypatch.setattr(annealing, "LR", 1e3)
    image = make_image()
    assert (
        refined(codec, human, image, method=method).data == refined(codec, human, image, method=method, refine=0).data
    )


def test_each_image_of_a_batch_is_refined_as_if_alone(codec, human, make_image, monkeypatch):
    monkeypatch.setattr(objective, "use_bf16", lambda device: False)
    images = [make_image(63, 61), torch.full((3, 63, 61), 0.5), make_image(200, 300)[:, :63, -61:].flip(0)]
    together = lc.encode_batch(images, codec, human, "none", refine=STEPS)
    for image, one in zip(images, together, strict=True):
        alone = refined(codec, human, image)
        assert one.loss_after == pytest.approx(alone.loss_after, rel=3e-3)
        assert one.loss_after == pytest.approx(objective_of(one, codec, human, image), rel=1e-5)


def test_large_images_are_refined_in_tiles(codec, human, make_image):
    image = make_image(130, 200)
    whole, tiled = (refined(codec, human, image, tile=tile) for tile in (1024, 128))
    assert tiled.loss_after == pytest.approx(objective_of(tiled, codec, human, image), rel=1e-4)
    gain = whole.loss_before - whole.loss_after
    assert gain > 0 and tiled.loss_after == pytest.approx(whole.loss_after, abs=0.1 * gain)


def test_the_file_holds_the_symbols_that_were_refined(codec, human, make_image):
    x = make_image(128, 192)[None]
    whole = objective.tiles((128, 192), codec, lambda *_: lambda decoded: human.distortion(decoded, x))
    goal = objective.Objective(x, (128, 192), whole, human.weight(2))
    adapted = annealed(None, STEPS).prepare(codec, x, FitSettings())
    adapted.fit(goal, FitSettings())
    latents = adapted.latents(x)
    with torch.no_grad():
        expected = codec.rate(latents).y_hat
    coder = codec.coder()
    torch.testing.assert_close(coder.decompress(coder.compress(latents), (128, 192)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method, expected", [("none", [0, 1, 2, 3]), ("svd_lora", [0, 1, 2, 2, 3, 4, 5])])
def test_steps_are_counted_on_from_those_of_the_method(codec, human, make_image, method, expected):
    counted = []
    refined(codec, human, make_image(), method=method, steps=2, refine=3, on_step=lambda i, _: counted.append(i))
    assert counted == expected
    assert steps_of(annealed(load_method(method, codec), 3), 2) == counted[-1]


@pytest.mark.parametrize("step, steps, temperature", [(0, 10, 0.5), (5, 10, 0.158), (0, 1, 0.5)])
def test_values_are_rounded_up_with_the_published_probability(step, steps, temperature):
    rounding = annealing.Annealing(torch.device("cpu"))
    rounding.cool(step, steps)
    assert rounding.temperature.item() == pytest.approx(temperature, abs=1e-3)
    torch.manual_seed(0)
    r = torch.tensor([0.1, 0.3, 0.5, 0.8])
    values = torch.tensor([-3.0, 0.0, 2.0, 7.0])
    samples = rounding((values + r).expand(1, 40_000, 4))[0] - values
    assert (samples >= 0).all() and (samples <= 1).all()
    down, up = (torch.exp(-torch.atanh(away) / rounding.temperature) for away in (r, 1 - r))
    torch.testing.assert_close((samples > 0.5).float().mean(0), up / (down + up), rtol=0, atol=0.01)


def test_images_of_a_batch_share_their_random_numbers():
    same = torch.rand(1, 3, 4).expand(2, 3, 4)
    first, second = annealing.Annealing(torch.device("cpu"))(same)
    assert torch.equal(first, second) and first.unique().numel() > 3


@pytest.mark.parametrize(
    "options, line",
    [
        ({"refine": -1}, "refine must be a number of steps, 0 or more, not -1"),
        ({"task": None}, "refinement needs a task: give one, such as human, or refine=0"),
        ({"task": None, "method": "svd_lora"}, "refinement needs a task: give one, such as human, or refine=0"),
    ],
)
def test_refinement_that_cannot_be_is_refused_in_one_line(codec, human, make_image, options, line):
    settings = {"method": "none", "task": human, "refine": 3} | options
    with pytest.raises(lc.LoraCompError, match=line) as error:
        lc.encode(make_image(), codec, **settings)
    assert "\n" not in str(error.value)


def test_a_method_that_is_annealed_already_is_refined_once(codec, human, make_image):
    """As the commands give it."""
    given = encode_images([make_image()], codec, human, annealed(None, STEPS), FitSettings())
    assert given[0].data == refined(codec, human, make_image()).data
