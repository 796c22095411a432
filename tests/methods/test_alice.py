"""ALICE: adapters of other rates, merged into a frozen codec."""

import dataclasses

import pytest
import torch

import lora_comp as lc
from lora_comp import ops
from lora_comp.codecs import weights_hash
from lora_comp.codecs.swin import SwinBlock
from lora_comp.methods import load_method
from lora_comp.methods.alice import AliceOptions, Pretraining, new_adapter
from lora_comp.methods.low_rank import LowRankLinear, with_adapter
from lora_comp.weights import read_weights, write_weights

KINDS = ["codec", "fixed_rate_codec", "stf"]


def write_adapter(path, codec, seed=0, target=1, changes=None):
    """An adapter with a visible effect, in a file as `lora-comp train` writes it."""
    pretraining = Pretraining(codec, AliceOptions(target=target))
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(p.shape, generator=rng) / 200 if name.endswith(".U") else p
        for name, p in pretraining.tensors().items()
    }
    card = {"codec": codec.name, "quality": codec.quality, "codec_hash": codec.hash.hex(), "method": "alice"}
    write_weights(path, tensors, card | pretraining.card | (changes or {}))
    return path


@pytest.fixture(params=KINDS)
def adapted(request, tmp_path):
    """Codecs with gains, of one rate point, and with channel slices, and the method with an adapter for each."""
    codec = request.getfixturevalue(request.param)
    return codec, load_method("alice", codec, adapter=str(write_adapter(tmp_path / "a.safetensors", codec)))


def test_merged_equals_unmerged(adapted, make_image):
    """MALICE: images within 1e-5, and y within 1e-5 of its largest value."""
    codec, method = adapted
    x = make_image(128, 192)[None]
    unmerged, merged = with_adapter(codec, method.adapter), method.prepare(codec, x).codec
    with torch.no_grad():
        y, y_hat = codec.latents(x)["y"], codec.rate(codec.latents(x)).y_hat
        for ours, theirs, plain in [
            (merged.latents(x)["y"], unmerged.latents(x)["y"], y),
            (merged.synthesize(y_hat), unmerged.synthesize(y_hat), codec.synthesize(y_hat)),
        ]:
            assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())
            assert (theirs - plain).abs().max() > 1e-2


def test_a_file_decodes_with_its_adapter_to_what_the_encoder_saw(adapted, human, make_image):
    codec, method = adapted
    image = make_image(100, 130)
    coded = lc.encode(image, codec, human, method)
    info = lc.info(coded.data)
    assert (info["method"], info["adapter"]) == ("alice", method.identity.hex())
    assert "bytes_adapter" not in info and coded.loss_before is None
    decoded = lc.decode(coded.data, codec, method=method)
    plain = lc.decode(lc.encode(image, codec, method="none").data, codec)
    assert decoded.shape == image.shape and (decoded - plain).abs().max() > 1e-3


def test_decoding_computes_no_low_rank_layer(adapted, monkeypatch):
    codec, method = adapted
    for made in (method.restore(codec, None), method.prepare(codec, torch.zeros(1, 3, 64, 64)).codec):
        assert not any(isinstance(module, LowRankLinear) for module in made.modules())
        assert all(type(a) is type(b) for a, b in zip(made.modules(), codec.modules(), strict=True))


def test_the_codec_is_left_as_it_was_and_its_entropy_model_serves_all(adapted):
    codec, method = adapted
    before = weights_hash(codec)
    made = method.prepare(codec, torch.zeros(1, 3, 64, 64)).codec
    assert weights_hash(codec) == before
    changed = {
        n for (n, p), q in zip(made.named_parameters(), codec.parameters(), strict=True) if not torch.equal(p, q)
    }
    assert changed == {f"{layer}.weight" for layer in method.adapter.layers}
    assert {name.rsplit(".", 2)[1] for name in changed} == {"fc1", "fc2"}
    assert {name.split(".")[0] for name in changed} == {"g_a", "g_s"}
    assert made.prior is codec.prior and made.h_s is codec.h_s and made.h_a is codec.h_a


def test_the_objective_is_that_of_the_target(codec, human, make_image, tmp_path):
    image = make_image()
    low, high = (
        lc.encode(
            image,
            codec,
            human,
            load_method("alice", codec, adapter=str(write_adapter(tmp_path / f"{q}.safetensors", codec, target=q))),
        )
        for q in (1, 4)
    )
    decoded = lc.decode(low.data, codec, adapter=tmp_path / "1.safetensors")
    mse = float(human.distortion(decoded[None], image[None]))
    for coded, quality in ((low, 1), (high, 4)):
        assert coded.loss_after == pytest.approx(human.weight(quality) * mse + coded.bpp, rel=1e-4)


def test_latents_are_refined_on_top_of_an_adapter(adapted, human, make_image):
    codec, method = adapted
    image = make_image()
    plain, refined = (lc.encode(image, codec, human, method, refine=steps) for steps in (0, 10))
    assert lc.info(refined.data)["adapter"] == method.identity.hex()
    assert refined.loss_after < plain.loss_after
    mse = float(human.distortion(lc.decode(refined.data, codec, method)[None], image[None]))
    assert refined.loss_after == pytest.approx(human.weight(method.target) * mse + refined.bpp, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"encoder": [True, False, False], "decoder": [False] * 3}, {"g_a.3"}),
        ({"encoder": [False] * 3}, {"g_s.0", "g_s.2", "g_s.4"}),
        ({"encoder": [False, False, True], "decoder": [True, False, True]}, {"g_a.7", "g_s.0", "g_s.4"}),
    ],
)
def test_stages_are_chosen_as_the_transforms_pass_them(codec, options, names):
    adapter = new_adapter(codec, AliceOptions(**options, fc1=False))
    assert {name.rsplit(".blocks", 1)[0] for name in adapter.layers} == names
    assert all(name.endswith("fc2") for name in adapter.layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": [True] * 4}, "encoder must have 3 values, one for each stage of Swin blocks of tic-v, not 4"),
        ({"fc1": False, "fc2": False}, "nothing to adapt"),
        ({"encoder": [False] * 3, "decoder": [False] * 3}, "nothing to adapt"),
    ],
)
def test_options_that_fit_no_layer_raise(codec, options, message):
    with pytest.raises(lc.LoraCompError, match=message):
        new_adapter(codec, AliceOptions(**options))


def test_a_new_adapter_changes_nothing_and_trains_a_and_b_alone(codec, make_image):
    pretraining = Pretraining(codec, AliceOptions())
    assert {name.rsplit(".", 1)[1] for name in pretraining.trained} == {"U", "V"}
    assert pretraining.tensors().keys() > pretraining.trained.keys()
    x = make_image()[None]
    with torch.no_grad():
        torch.testing.assert_close(pretraining.module.eval()(x)["x_hat"], codec(x)["x_hat"])
    (s,) = {float(v) for n, p in pretraining.tensors().items() if n.endswith(".S") for v in p}
    assert s == 8


def test_an_update_is_scaled_by_alpha_alone(codec):
    """Not by alpha / r, as in LoRA: the published layer is x W^T + alpha (x A) B."""
    adapter = new_adapter(codec, AliceOptions(rank=3, alpha=5))
    name = adapter.layers[0]
    a, b = adapter.tensors[f"{name}.V"], torch.randn(3, adapter.tensors[f"{name}.U"].shape[0])
    layer, x = codec.get_submodule(name), torch.randn(7, len(a))
    low_rank = ops.svd_lora_linear(x, layer.weight, layer.bias, b.T, adapter.tensors[f"{name}.S"], a, adapter.scale)
    torch.testing.assert_close(low_rank, layer(x) + 5 * (x @ a) @ b, rtol=1e-4, atol=1e-4)


def test_the_vanilla_baseline_is_a_copy_of_the_layers(codec, human, make_image, tmp_path):
    pretraining = Pretraining(codec, AliceOptions(target=1, vanilla=True, encoder=[True, False, False]))
    trained = pretraining.trained
    assert {name.rsplit(".", 2)[1] for name in trained} == {"fc1", "fc2"}
    assert {name.split(".blocks")[0] for name in trained} == {"g_a.3", "g_s.0", "g_s.2", "g_s.4"}
    with torch.no_grad():
        for parameter in trained.values():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 20
    card = {"codec": codec.name, "quality": codec.quality, "codec_hash": codec.hash.hex(), "method": "alice"}
    write_weights(path := tmp_path / "a.safetensors", pretraining.tensors(), card | pretraining.card, torch.float32)
    method, image = load_method("alice", codec, adapter=str(path)), make_image()
    made = method.prepare(codec, image[None]).codec
    with torch.no_grad():
        ours, theirs, plain = (m.eval()(image[None])["x_hat"] for m in (made, pretraining.module, codec))
    assert torch.equal(ours, theirs) and (ours - plain).abs().max() > 1e-2
    coded = lc.encode(image, codec, human, method)
    assert torch.equal(lc.decode(coded.data, codec, adapter=path), lc.decode(coded.data, codec, method))
    with pytest.raises(lc.LoraCompError, match="vanilla=true trains the layers themselves"):
        Pretraining(codec, AliceOptions(target=1, vanilla=True, rank=4))


@pytest.fixture
def coded(codec, human, make_image, tmp_path):
    path = write_adapter(tmp_path / "a.safetensors", codec)
    return lc.encode(make_image(), codec, human, load_method("alice", codec, adapter=str(path))).data


def test_a_file_without_its_adapter_says_which_it_needs(codec, coded, tmp_path):
    with pytest.raises(lc.BitstreamError, match=rf"needs the adapter {lc.info(coded)['adapter']} .*adapter=PATH$"):
        lc.decode(coded, codec)
    other = write_adapter(tmp_path / "other.safetensors", codec, seed=1)
    with pytest.raises(lc.BitstreamError, match=r"was encoded with the adapter .*, and .*other\.safetensors is"):
        lc.decode(coded, codec, adapter=other)


def test_adapters_of_other_weights_or_methods_are_refused(codec, coded, tmp_path):
    for changes in ({"codec_hash": "00000000"}, {"codec": "tic"}, {"quality": 3}):
        path = write_adapter(tmp_path / "other.safetensors", codec, changes=changes)
        for load in (
            lambda path: load_method("alice", codec, adapter=str(path)),
            lambda path: lc.decode(coded, codec, adapter=path),
        ):
            with pytest.raises(lc.LoraCompError, match="was trained for other weights than those loaded of tic-v"):
                load(path)
    path = write_adapter(tmp_path / "svd.safetensors", codec, changes={"method": "svd_lora"})
    with pytest.raises(lc.LoraCompError, match="is an adapter of the method svd_lora, not of alice"):
        load_method("alice", codec, adapter=str(path))
    with pytest.raises(lc.LoraCompError, match="is an adapter of the method alice, not of svd_lora"):
        load_method("svd_lora", codec, adapter=str(write_adapter(tmp_path / "a.safetensors", codec)))


@pytest.mark.parametrize(
    "change",
    [
        {"g_s.0.blocks.0.mlp.fc1.V": None},
        {"g_s.0.blocks.0.mlp.fc1.S": torch.ones(9)},
        {"g_s.9.blocks.0.mlp.fc1.weight": torch.ones(2, 2)},
        {"h_s.0.blocks.0.mlp.fc1.bias": torch.ones(128)},
    ],
)
def test_tensors_that_do_not_fit_the_codec_are_named(codec, tmp_path, change):
    tensors, card = read_weights(write_adapter(tmp_path / "a.safetensors", codec), "the adapter")
    write_weights(tmp_path / "a.safetensors", {k: v for k, v in (tensors | change).items() if v is not None}, card)
    with pytest.raises(lc.LoraCompError, match=r"is not an adapter of tic-v: [gh]_s\..* does not match its layers$"):
        load_method("alice", codec, adapter=str(tmp_path / "a.safetensors"))


def test_an_adapter_of_a_codec_of_variable_rate_is_for_one_quality(codec, human, make_image, tmp_path):
    """Its gains at another quality would give another rate than the adapter was trained for."""
    path = str(write_adapter(tmp_path / "a.safetensors", codec))
    method = load_method("alice", codec, adapter=path)
    with pytest.raises(lc.LoraCompError, match=r"is for tic-v quality 2, not .*: leave sizes out"):
        lc.encode(make_image(), codec, human, method, bytes=200)
    with pytest.raises(lc.LoraCompError, match=r"other weights than those loaded of tic-v quality 3\.5"):
        load_method("alice", codec.at(3.5), adapter=path)


def test_what_can_be_set_is_checked(codec, tmp_path):
    path = str(write_adapter(tmp_path / "a.safetensors", codec))
    with pytest.raises(lc.LoraCompError, match="needs the adapter of a rate"):
        load_method("alice", codec)
    with pytest.raises(lc.LoraCompError, match=r"rank and fc1 can be set in training, and .*a\.safetensors is trained"):
        load_method("alice", codec, adapter=path, rank=4, fc1=False)
    assert not dataclasses.asdict(AliceOptions())["adapter"]


def test_a_file_with_a_payload_is_refused(codec, tmp_path):
    method = load_method("alice", codec, adapter=str(write_adapter(tmp_path / "a.safetensors", codec)))
    with pytest.raises(lc.BitstreamError, match="has a payload"):
        method.restore(codec, b"")


def test_every_swin_block_of_every_codec_is_reached(adapted):
    codec, method = adapted
    blocks = [m for side in (codec.g_a, codec.g_s) for m in side.modules() if isinstance(m, SwinBlock)]
    assert len(method.adapter.layers) == 2 * len(blocks)
