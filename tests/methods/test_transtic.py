"""TransTIC: prompts for a frozen codec, in adapters that serve a task."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from PIL import Image

import lora_comp as lc
from lora_comp import zoo
from lora_comp.codecs import weights_hash
from lora_comp.methods import load_method
from lora_comp.methods.transtic import Pretraining, TransTICOptions, UNet, make
from lora_comp.train import main
from lora_comp.training import adapter as adapter_training
from lora_comp.weights import read_weights, write_weights

KINDS = ["codec", "fixed_rate_codec", "stf"]
SMALL = TransTICOptions(width=4)


def write_adapter(path, codec, options=SMALL, changes=None, scale=1.0):
    """An adapter as it is before training, with a visible effect, in a file as `lora-comp train` writes it.

    scale: of the prompts of g_s.
    """
    pretraining = Pretraining(codec, options)
    card = {"codec": codec.name, "quality": codec.rate_point, "codec_hash": codec.hash.hex(), "method": "transtic"}
    tensors = {n: scale * v if "tokens" in n else v for n, v in pretraining.tensors().items()}
    write_weights(path, tensors, card | pretraining.card | (changes or {}))
    return path


@pytest.fixture(params=KINDS)
def adapted(request, tmp_path):
    """Codecs with gains, of one rate point, and with channel slices, and the method with an adapter for each."""
    codec = request.getfixturevalue(request.param)
    return codec, load_method("transtic", codec, adapter=str(write_adapter(tmp_path / "a.safetensors", codec)))


@pytest.fixture
def unguarded(adapted):
    """As `adapted`, and it writes the adapted file even where the plain one has the lower objective."""
    adapted[1].guarded = False
    return adapted


@pytest.fixture
def method(codec, tmp_path):
    made = load_method("transtic", codec, adapter=str(write_adapter(tmp_path / "a.safetensors", codec)))
    made.guarded = False
    return made


def test_a_file_decodes_with_its_adapter_to_what_the_encoder_saw(unguarded, human, make_image):
    codec, method = unguarded
    image = make_image(100, 130)
    coded = lc.encode(image, codec, human, method)
    info = lc.info(coded.data)
    assert (info["method"], info["adapter"]) == ("transtic", method.identity.hex())
    assert "bytes_adapter" not in info
    decoded = lc.decode(coded.data, codec, method)
    mse = float(human.distortion(decoded[None], image[None]))
    assert coded.loss_after == pytest.approx(human.weight(codec.quality) * mse + coded.bpp, rel=1e-4)


def test_encoder_and_decoder_have_prompts_and_the_rest_is_the_codecs(adapted, make_image):
    codec, method = adapted
    before, x = weights_hash(codec), make_image(128, 192)[None]
    made, decoder = method.prepare(codec, x).codec, method.restore(codec, None)
    with torch.no_grad():
        y, y_hat = codec.latents(x)["y"], codec.rate(codec.latents(x)).y_hat
        assert (made.latents(x)["y"] - y).abs().max() > 1e-2 * y.std()
        assert (made.synthesize(y_hat) - codec.synthesize(y_hat)).abs().max() > 1e-3
        assert torch.equal(made.synthesize(y_hat), decoder.synthesize(y_hat))
    assert made.prior is codec.prior and made.h_s is codec.h_s and made.h_a is codec.h_a and decoder.g_a is codec.g_a
    assert weights_hash(codec) == before


def test_the_plain_decoder_shows_what_is_left_for_people(unguarded, human, make_image):
    codec, method = unguarded
    image = make_image()
    data = lc.encode(image, codec, human, method).data
    for_people = lc.decode(data, codec, method="none")  # without the adapter
    assert for_people.shape == image.shape
    assert not torch.equal(for_people, lc.decode(data, codec, method))
    plain = lc.encode(image, codec, method="none").data
    assert torch.equal(lc.decode(plain, codec, method="none"), lc.decode(plain, codec))
    with pytest.raises(lc.LoraCompError, match="method may be 'none' or None, not 'transtic'"):
        lc.decode(data, codec, method="transtic")


def test_where_prompts_do_harm_the_plain_file_is_written(codec, human, make_image, tmp_path):
    path = write_adapter(tmp_path / "a.safetensors", codec, scale=30)
    coded = lc.encode(make_image(), codec, human, load_method("transtic", codec, adapter=str(path)))
    assert (coded.method, lc.info(coded.data)["adapter"]) == ("none", None)
    assert coded.loss_after == coded.loss_before


@pytest.mark.parametrize("quality", [1, 2.5, 6])
def test_one_adapter_serves_every_rate_of_a_codec_that_has_them(codec, human, make_image, method, quality):
    image, codec = make_image(), codec.at(quality)
    coded = lc.encode(image, codec, human, method)
    assert coded.quality == quality
    assert torch.equal(lc.decode(coded.data, codec, method), lc.decode(coded.data, codec.at(3), method))


def test_a_size_is_met_with_prompts(codec, human, make_image, method):
    coded = lc.encode(make_image(128, 128), codec, human, method, bytes=4000)
    assert lc.info(coded.data)["method"] == "transtic"
    assert len(coded.data) == pytest.approx(4000, rel=0.02)


def test_latents_are_refined_on_top_of_prompts(codec, human, make_image, method):
    image = make_image()
    unrefined, refined = (lc.encode(image, codec, human, method, refine=steps) for steps in (0, 10))
    assert lc.info(refined.data)["adapter"] == method.identity.hex()
    assert refined.loss_after < unrefined.loss_after


def test_another_process_decodes_the_identical_image(codec, weights, human, make_image, method, tmp_path):
    image = make_image(70, 90)
    (tmp_path / "cat.lcz").write_bytes(lc.encode(image, codec, human, method).data)
    program = (
        "import sys, torch, lora_comp as lc; codec = lc.load_codec('tic-v', 2, sys.argv[1]);"
        "torch.save(lc.decode(sys.argv[2], codec, adapter=sys.argv[3]), sys.argv[4])"
    )
    words = [weights, tmp_path / "cat.lcz", tmp_path / "a.safetensors", tmp_path / "decoded.pt"]
    subprocess.run([sys.executable, "-c", program, *map(str, words)], check=True)
    decoded = torch.load(tmp_path / "decoded.pt")
    assert torch.equal(decoded, lc.decode(tmp_path / "cat.lcz", codec, method))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"g_a.unet", "g_a.between", "g_a.layers", "g_s.tokens.0", "g_s.tokens.2", "g_s.tokens.4"}),
        ({"encoder": 1}, {"g_a.unet", "g_a.layers", "g_s.tokens.0", "g_s.tokens.2", "g_s.tokens.4"}),
        ({"encoder": 0}, {"g_s.tokens.0", "g_s.tokens.2", "g_s.tokens.4"}),
        ({"encoder": 3, "decoder": [False] * 3}, {"g_a.unet", "g_a.between", "g_a.layers"}),
        ({"decoder": [True, False, True]}, {"g_a.unet", "g_a.between", "g_a.layers", "g_s.tokens.0", "g_s.tokens.4"}),
    ],
)
def test_stages_are_chosen(codec, make_image, tmp_path, options, names):
    options = dataclasses.replace(SMALL, **options)
    tensors = Pretraining(codec, options).tensors()
    assert {".".join(name.split(".")[: 3 if name.startswith("g_s") else 2]) for name in tensors} == names
    path = write_adapter(tmp_path / "a.safetensors", codec, options)
    made = load_method("transtic", codec, adapter=str(path)).prepare(codec, make_image()[None]).codec
    assert torch.isfinite(made(make_image()[None])["x_hat"]).all()


def test_the_first_stages_are_the_first_of_swin_blocks(codec, fixed_rate_codec):
    """At strides 2 and 4 of tic, as published; at 4 and 8 of tic-v, which has none at 2. A window has 16 prompts."""
    for one, strides, blocks in ((fixed_rate_codec, (2, 4), (2, 4)), (codec, (4, 8), (2, 4))):
        prompts = Pretraining(one, SMALL).prompts.sides["g_a"][1]
        maps = list(prompts(torch.zeros(1, 3, 128, 192)))
        assert [len(stage) for stage in maps] == list(blocks)
        for stage, stride in zip(maps, strides, strict=True):
            assert {tuple(m.shape[1:3]) for m in stage} == {(64 // stride, 96 // stride)}


def test_an_encoder_makes_the_prompts_that_were_trained(codec, make_image, tmp_path):
    """With kernels and without batch norms, which training has."""
    pretraining = Pretraining(codec, dataclasses.replace(SMALL, width=16))
    for module in pretraining.prompts.sides["g_a"][1].modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.running_var, module.weight, module.bias):
                values.data.uniform_(0.5, 2)
    made = make(tmp_path, pretraining.tensors(), {"downsample": 2}, codec).sides["g_a"][1]
    trained, x = pretraining.prompts.sides["g_a"][1].eval(), make_image(128, 192)[None]
    with torch.no_grad():
        found, expected = ([prompts for stage in side(x) for prompts in stage] for side in (made, trained))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_the_published_generator_is_the_default_of_tic(fixed_rate_codec):
    tensors = Pretraining(fixed_rate_codec, TransTICOptions()).tensors()
    assert tensors["g_a.unet.down1.0.weight"].shape == (32, 3, 3, 3)
    assert [tuple(tensors[f"g_s.tokens.{i}"].shape) for i in (0, 2, 4, 6)] == [
        (2, 16, 192), (6, 16, 128), (4, 16, 128), (2, 16, 128)
    ]  # fmt: skip
    assert abs(tensors["g_s.tokens.0"]).max() <= (6 / (3 + 192)) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": 4}, "encoder must be at most 3, the stages of tic-v, not 4"),
        ({"decoder": [True] * 4}, "decoder must have 3 values, one for each stage of Swin blocks of tic-v, not 4"),
        ({"encoder": 0, "decoder": [False] * 3}, "nothing to adapt"),
        ({"downsample": 3}, "downsample must divide 4, half a window of tic-v"),
    ],
)
def test_options_that_do_not_fit_the_codec_raise(codec, options, message):
    with pytest.raises(lc.LoraCompError, match=message):
        Pretraining(codec, TransTICOptions(**options))


def test_what_is_trained_is_the_prompts_alone(codec):
    pretraining = Pretraining(codec, SMALL)
    parameters = {id(p) for p in pretraining.trained.values()}
    own = [name for name, p in pretraining.module.named_parameters() if id(p) not in parameters]
    assert not any(".prompts." in name for name in own)
    assert parameters.isdisjoint(map(id, codec.parameters()))
    assert weights_hash(codec) == codec.hash


def test_batch_norms_are_merged_into_the_file(codec, make_image, tmp_path):
    """After some steps of training, whose statistics are not those of a new module."""
    pretraining = Pretraining(codec, SMALL)
    with torch.no_grad():
        for i in range(4):
            pretraining.module(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)))
        for module in pretraining.module.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight += 0.3
                module.bias -= 0.2
    tensors = dict(pretraining.tensors())
    made = make(tmp_path, tensors, pretraining.card, codec)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for _, side in made.sides.values() for m in side.modules())
    x = make_image(64, 128)[None]
    with torch.no_grad():
        theirs, ours = pretraining.module.eval()(x), made.of(codec)(x)
    assert (ours["y"] - theirs["y"]).abs().max() <= 1e-4 * theirs["y"].std()


def test_dropout_is_of_training_alone(codec):
    prompts = Pretraining(codec, dataclasses.replace(SMALL, dropout=0.5)).prompts.sides["g_s"][1]
    tokens, y = prompts.tokens["0"], torch.zeros(1)
    dropped = next(prompts.train()(y))
    assert 0.3 < (dropped == 0).float().mean() < 0.7
    assert torch.equal(next(prompts.eval()(y)), tokens)


def test_a_generator_of_other_pixels_than_the_first_takes_them_as_channels():
    assert UNet(12, 4, 8, norm=False)(torch.zeros(2, 12, 20, 36)).shape == (2, 8, 10, 18)


@pytest.fixture
def coded(codec, human, make_image, method):
    return lc.encode(make_image(), codec, human, method).data


def test_a_file_without_its_adapter_says_which_it_needs(codec, coded, tmp_path):
    with pytest.raises(lc.BitstreamError, match=rf"needs the adapter {lc.info(coded)['adapter']} .*adapter=PATH$"):
        lc.decode(coded, codec)
    other = write_adapter(tmp_path / "other.safetensors", codec, scale=0.5)
    with pytest.raises(lc.BitstreamError, match=r"was encoded with the adapter .*, and .*other\.safetensors is"):
        lc.decode(coded, codec, adapter=other)


def test_adapters_of_other_weights_or_methods_are_refused(codec, tmp_path):
    for changes in ({"codec_hash": "00000000"}, {"codec": "tic"}, {"quality": 3}):
        path = write_adapter(tmp_path / "other.safetensors", codec, changes=changes)
        with pytest.raises(lc.LoraCompError, match="was trained for other weights than those loaded of tic-v"):
            load_method("transtic", codec, adapter=str(path))
    path = write_adapter(tmp_path / "alice.safetensors", codec, changes={"method": "alice"})
    with pytest.raises(lc.LoraCompError, match="is an adapter of the method alice, not of transtic"):
        load_method("transtic", codec, adapter=str(path))
    with pytest.raises(lc.LoraCompError, match="is an adapter of the method transtic, not of svd_lora"):
        load_method("svd_lora", codec, adapter=str(write_adapter(tmp_path / "a.safetensors", codec)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"g_a.unet.down1.0.bias": None}, r"g_a\.unet\.down1\.0\.bias"),
        ({"g_a.unet.down1.0.weight": None}, r"g_a\.unet\.down1\.0\.weight"),
        ({"g_a.layers.0.1.bias": torch.zeros(7)}, r"g_a\.layers\.0\.1\.bias"),
        ({"g_s.tokens.0": torch.zeros(2, 16)}, r"g_s\.tokens\.0"),
        ({"g_s.tokens.9": torch.zeros(2, 16, 64)}, r"g_s\.tokens\.9"),
        ({"g_s.tokens.x": torch.zeros(2, 16, 64)}, r"g_s\.tokens\.x"),
        ({"g_a.layers.7.0.bias": torch.zeros(64)}, r"g_a\.layers\.7\.0\.bias"),
        ({"h_s.0.blocks.0.mlp.fc1.bias": torch.ones(128)}, r"h_s\.0\.blocks\.0\.mlp\.fc1\.bias"),
    ],
)
def test_tensors_that_do_not_fit_the_codec_are_named(codec, tmp_path, change, named):
    tensors, card = read_weights(write_adapter(tmp_path / "a.safetensors", codec), "the adapter")
    write_weights(tmp_path / "a.safetensors", {k: v for k, v in (tensors | change).items() if v is not None}, card)
    with pytest.raises(lc.LoraCompError, match=rf"is not an adapter of tic-v: {named}.* does not match its stages$"):
        load_method("transtic", codec, adapter=str(tmp_path / "a.safetensors"))


def test_an_adapter_whose_training_diverged_is_refused(codec, tmp_path):
    path = write_adapter(tmp_path / "a.safetensors", codec, scale=float("nan"))
    with pytest.raises(lc.LoraCompError, match=r"g_s\.tokens\.0 is not finite; train it again"):
        load_method("transtic", codec, adapter=str(path))


def test_shipped_adapters_are_chosen_by_task(codec, tmp_path, monkeypatch, human, make_image):
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    with pytest.raises(lc.LoraCompError, match=r"none ships for tic-v and the task det-scenes: .*method\.adapter=FILE"):
        load_method("transtic", codec, "det-scenes")
    for task, scale in (("human", 1.0), ("cls-scenes", 0.5)):
        write_adapter(zoo.adapter_path("tic-v", None, "transtic", task), codec, scale=scale)
    person, machine = (load_method("transtic", codec, task) for task in ("human", "cls-scenes"))
    assert person.identity != machine.identity
    assert load_method("transtic", codec, "det-scenes+cls-scenes").identity == machine.identity
    assert load_method("transtic", codec, "cls-scenes", adapter="human").identity == person.identity
    with pytest.raises(lc.LoraCompError, match=r"ships for tic-v \(cls-scenes, human\); there is no file seg"):
        load_method("transtic", codec, adapter="seg")
    person.guarded = False
    data = lc.encode(make_image(), codec, human, person).data
    assert torch.equal(lc.decode(data, codec), lc.decode(data, codec, person))


def test_what_can_be_set_is_checked(codec, tmp_path):
    path = str(write_adapter(tmp_path / "a.safetensors", codec))
    with pytest.raises(lc.LoraCompError, match="tokens and dropout can be set in training alone"):
        load_method("transtic", codec, adapter=path, tokens=4, dropout=0.1)


def test_a_file_with_a_payload_is_refused(codec, method):
    with pytest.raises(lc.BitstreamError, match="has a payload"):
        method.restore(codec, b"")


def batches(step, count=2):
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("qualities", [(2,), (1, 2, 3, 4, 5, 6)])
def test_a_stopped_training_goes_on_to_the_same_adapter(codec, human, tmp_path, qualities):
    """Dropout and the running statistics of batch norms included."""
    options = dataclasses.replace(SMALL, dropout=0.2)

    def train(work, stop_after=None):
        def until_stopped(step):
            if step == stop_after:
                raise KeyboardInterrupt
            return batches(step)

        pretraining = Pretraining(codec, options)
        return adapter_training.train(pretraining, qualities, human, until_stopped, tmp_path / work, lr=1e-3, steps=4)[
            0
        ]

    straight = train("straight")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop_after=2)
    resumed = train("stopped")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    new = Pretraining(codec, options).tensors()
    assert not any(torch.equal(new[name], straight[name]) for name in new)


@pytest.mark.slow
def test_training_lowers_the_loss(codec, human, make_image, tmp_path):
    image = make_image(128, 128)[None]
    first, last = (
        adapter_training.train(
            Pretraining(codec, SMALL), (2,), human, lambda step: image, tmp_path / f"{n}", lr=1e-3, steps=n
        )[1]["loss"]
        for n in (1, 60)
    )
    assert last < 0.9 * first


def test_the_command_trains_an_adapter_that_serves_all_rates(tmp_path, make_image):
    photo = Image.fromarray((make_image(256, 256).permute(1, 2, 0) * 255).byte().numpy())
    for i in range(2):
        photo.save(tmp_path / f"{i}.png")
    words = ["what=adapter", "method=transtic", "method.width=4", "method.dropout=0.1", "task=human", "steps=2"]
    words += ["batch=2", "codec=tic-v", "codec.weights=null", "threads=1", f"images=[{tmp_path}]"]
    assert main([*words, f"work={tmp_path / 'work'}", f"into={tmp_path}"]) == 0
    path = tmp_path / "tic-v-transtic-human.safetensors"
    card = read_weights(path, "the adapter")[1]
    assert (card["quality"], card["method"], card["task"]) == (None, "transtic", "human")
    assert (card["downsample"], card["dropout"]) == (2, 0.1)
    codec = lc.load_codec("tic-v", 4.5, weights=None)
    method = load_method("transtic", codec, adapter=str(path))
    method.guarded = False
    coded = lc.encode(make_image(), codec, lc.load_task("human"), method)
    assert torch.equal(lc.decode(coded.data, codec, adapter=path), lc.decode(coded.data, codec, method))
