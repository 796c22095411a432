"""SVD-LoRA and LoRA: trained and transmitted parameters, adapters, and exact restoration in the decoder."""

import numpy as np
import pytest
import torch

import lora_comp as lc
from lora_comp import api, zoo
from lora_comp.codecs import at_quality
from lora_comp.entropy import updates
from lora_comp.methods import FitSettings, load_method, method_of_file
from lora_comp.methods.low_rank import ATTENTION, MLP, Adapter, LowRankLinear, identify, layers, stages
from lora_comp.methods.low_rank import seeded as seeded_adapter
from lora_comp.methods.refine import propose
from lora_comp.methods.svd_lora import VARIANTS, LowRank
from lora_comp.objective import Objective, tiles
from lora_comp.weights import read_weights, write_weights

BOTH = pytest.mark.parametrize("name", ["svd_lora", "lora"])
ADAPTER = FitSettings(recipe="adapter")
BLACK = torch.zeros(1, 3, 64, 64)


def seeded(codec, name, **options):
    return seeded_adapter(codec, VARIANTS[name].start, **options)


def prepare(method, codec, x=BLACK):
    """The codec with the method's layers, to train the encoder's adapter."""
    return method.prepare(codec, x, ADAPTER)


def state(codec):
    return {k: v.clone() for k, v in codec.state_dict().items()}


def same(before, codec):
    return all(torch.equal(v, codec.state_dict()[k]) for k, v in before.items())


def low_rank_layers(adapted):
    return {k: m for k, m in adapted.codec.named_modules() if isinstance(m, LowRankLinear)}


def with_noise(method, codec, seed=0):
    """An adapted codec with noise added to all trained parameters."""
    adapted = prepare(method, codec)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in adapted.groups(1.0):
            for parameter in group.parameters:
                parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    return adapted


def test_stages_follow_the_transforms(stf, codec):
    """Those of tic-v begin at stride 4: at stride 2 it has GDN."""
    assert [stages(stf, side) for side in ("g_a", "g_s")] == [
        ["g_a.1", "g_a.3", "g_a.5", "g_a.7"],
        ["g_s.0", "g_s.2", "g_s.4", "g_s.6"],
    ]
    assert [len(stages(codec, side)) for side in ("g_a", "g_s")] == [3, 3]
    assert list(layers(stf, MLP, stages(stf, "g_s")[:1])) == ["g_s.0.blocks.0.mlp.fc1", "g_s.0.blocks.0.mlp.fc2"]


def test_target_layers_are_qkv_and_proj_of_g_a_and_g_s(codec):
    targets = layers(codec)
    assert len(targets) == 2 * 2 * (2 + 4 + 2)
    assert {name.split(".")[0] for name in targets} == {"g_a", "g_s"}
    assert {name.split(".")[-1] for name in targets} == {"qkv", "proj"}
    assert {name.split(".")[-1] for name in layers(codec, ATTENTION + MLP)} == {"qkv", "proj", "fc1", "fc2"}


@BOTH
@pytest.mark.parametrize("mlp", [False, True])
def test_trained_parameters_are_the_encoders_adapter_and_the_transmitted_updates(codec, name, mlp):
    adapted = prepare(load_method(name, codec, mlp=mlp), codec)
    names = {id(p): k for k, p in adapted.named_parameters()}
    trained = {names[id(p)].removesuffix(".latent") for group in adapted.groups(1.0) for p in group.parameters}
    sides = {"g_a": {"svd_lora": "USV", "lora": "UV"}[name], "g_s": {"svd_lora": "S", "lora": "UV"}[name]}
    assert trained == {
        f"codec.{layer}.{k}" for layer in layers(codec, ATTENTION + MLP if mlp else ATTENTION) for k in sides[layer[:3]]
    }


@BOTH
def test_a_seeded_adapter_does_not_change_the_output(codec, make_image, name):
    x = make_image(64, 64)[None]
    with torch.no_grad():
        made = prepare(load_method(name, codec), codec, x).codec(x)["x_hat"]
        torch.testing.assert_close(made, codec(x)["x_hat"])


@BOTH
def test_fitting_changes_trained_parameters_only(codec, human, make_image, name):
    before = state(codec)
    method = load_method(name, codec)
    x = make_image(64, 64)[None]
    adapted = prepare(method, codec, x)
    chosen = {id(p) for group in adapted.groups(1.0) for p in group.parameters}
    frozen = {k: p.clone() for k, p in adapted.named_parameters() if id(p) not in chosen}
    trained = {k: p.clone() for k, p in adapted.named_parameters() if id(p) in chosen}
    whole = tiles((64, 64), codec, lambda rows, columns: lambda y: human.distortion(y, x))
    adapted.fit(Objective(x, (64, 64), whole, 500.0), FitSettings(steps=4, lr=0.02))
    assert same(before, codec) and not any(p.requires_grad for p in codec.parameters())
    assert all(torch.equal(v, adapted.get_parameter(k)) for k, v in frozen.items())
    assert any(not torch.equal(v, adapted.get_parameter(k)) for k, v in trained.items())


@BOTH
@pytest.mark.parametrize("exponent", [0, 8, 24])
def test_restored_weights_equal_the_encoders_exactly(codec, name, exponent):
    method = load_method(name, codec, exponent=exponent)
    adapted = with_noise(method, codec)
    g_s = method.restore(codec, *adapted.payloads()).g_s
    for layer, low_rank in low_rank_layers(adapted).items():
        if layer.startswith("g_s"):
            u, s, v = (low_rank.value(k)[0].detach() for k in "USV")
            merged = lc.ops.merge(low_rank.layer.weight, u, s, v, low_rank.scale)
            assert torch.equal(g_s.get_submodule(layer.removeprefix("g_s.")).weight, merged)


def test_the_payload_holds_integer_updates_of_the_adapter(codec):
    method = load_method("svd_lora", codec)
    adapted = with_noise(method, codec)
    k, step = updates.decode(*adapted.payloads(), 16 * 4)
    encoder = torch.cat([m.value("S")[0] for n, m in low_rank_layers(adapted).items() if n.startswith("g_s")])
    base = torch.cat([method.adapter.tensors[f"{n}.S"] for n in low_rank_layers(adapted) if n.startswith("g_s")])
    assert k.any()
    assert torch.equal(base + step * torch.from_numpy(k).float(), encoder)


@BOTH
@pytest.mark.parametrize("exponent", [0, 5, 24])
def test_placed_symbols_are_those_of_the_payload(codec, name, exponent):
    method = load_method(name, codec, exponent=3)
    adapted = with_noise(method, codec)
    k = np.random.default_rng(0).integers(-9, 10, adapted.symbols().shape).astype(np.int32)
    adapted.place(k, np.array([exponent]))
    np.testing.assert_array_equal(adapted.symbols(), k)
    decoded, step = updates.decode(*adapted.payloads(), k.size)
    assert (decoded.tolist(), step) == (k[0].tolist(), 2.0**-exponent)


@pytest.mark.parametrize("exponent", [2, 3, 4])
def test_propose_descends_steep_slopes_and_shrinks_flat_ones(codec, exponent):
    adapted = prepare(load_method("svd_lora", codec, exponent=3), codec)
    k = np.array([[4, -4] * 32], np.int32)
    adapted.place(k, np.array([3]))
    slopes = np.zeros((1, 64))
    slopes[:, 16:32] = 40.0
    proposed = propose(adapted, slopes, np.array([exponent]), damping=np.ones(1)) * 2.0 ** (3 - exponent)
    assert (proposed[:, 16:32] < k[:, 16:32]).all()
    assert np.abs(proposed[:, 32:]).mean() < np.abs(k[:, 32:]).mean()
    assert adapted.symbols().tolist() == k.tolist()


@BOTH
@pytest.mark.parametrize("mlp", [False, True])
def test_the_merged_decoder_matches_the_adapted_one(codec, make_image, name, mlp):
    method = load_method(name, codec, mlp=mlp)
    adapted = with_noise(method, codec)
    with torch.no_grad():
        y_hat = codec(make_image(64, 64)[None])["y_hat"]
        plain, expected = codec.synthesize(y_hat), adapted.codec.synthesize(y_hat)
        restored = method.restore(codec, *adapted.payloads()).synthesize(y_hat)
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-4)
    assert (expected - plain).abs().max() > 5e-3


@BOTH
def test_a_seeded_adapter_is_restored_from_its_identity(codec, name):
    made = seeded(codec, name, rank=3, alpha=5, mlp=True, seed=7)
    again = method_of_file(name, made.identity, codec).adapter
    assert (again.rank, again.scale) == (3, 5 / 3)
    assert again.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(v, again.tensors[k]) for k, v in made.tensors.items())
    assert seeded(codec, name, seed=8).identity != seeded(codec, name, seed=7).identity


@pytest.mark.parametrize("rank", [1, 4, 16, 40])
def test_adapter_shapes_follow_the_rank(codec, rank):
    adapted = prepare(load_method("svd_lora", codec, rank=rank), codec)
    for low_rank in low_rank_layers(adapted).values():
        inputs, outputs = low_rank.layer.in_features, low_rank.layer.out_features
        assert low_rank.value("S").shape == (1, rank)
        assert (low_rank.U.shape, low_rank.V.shape) == ((1, outputs, rank), (1, inputs, rank))
        assert low_rank.scale == 8 / rank


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 256}, {"alpha": 0}, {"seed": 128}, {"exponent": 25}])
def test_options_out_of_range_raise(codec, options):
    with pytest.raises(lc.LoraCompError):
        load_method("svd_lora", codec, **options)


def test_an_unknown_method_raises(codec):
    with pytest.raises(lc.LoraCompError, match="available are none, svd_lora, lora"):
        load_method("dreambooth", codec)


def pretrained(path, codec, codec_hash=None):
    """Write a file of a pre-trained adapter."""
    rng = np.random.default_rng(0)
    tensors = {
        k: torch.from_numpy(rng.normal(0, 0.05, v.shape)).half().float()
        for k, v in seeded(codec, "svd_lora").tensors.items()
    }
    card = {
        "codec": codec.name,
        "quality": codec.rate_point,
        "codec_hash": (codec_hash or codec.hash).hex(),
        "rank": 4,
        "alpha": 8,
    }
    write_weights(path, tensors, card)
    return tensors


@torch.no_grad()
def written(codec, method, x):
    """The file of an image, without fitting."""
    adapted = prepare(method, codec, x)
    (data,) = api.write(codec, adapted.latents(x), tuple(x.shape[2:]), method, adapted)
    return data


@pytest.fixture
def coded(codec, human, make_image, tmp_path):
    """A file that needs a pre-trained adapter, and the path of that adapter."""
    path = tmp_path / "adapter.safetensors"
    pretrained(path, codec)
    method = load_method("svd_lora", codec, adapter=path)
    return written(codec, method, make_image()[None]), path


def test_a_pretrained_adapter_is_loaded_from_its_path(codec, coded):
    data, path = coded
    expected = load_method("svd_lora", codec, adapter=path)
    assert torch.equal(lc.decode(data, codec, adapter=path), lc.decode(data, codec, method=expected))
    assert lc.info(data)["adapter"] == identify(expected.adapter.tensors).hex()


@pytest.fixture
def with_gains(codec, tmp_path):
    """The path of an adapter with gain vectors of its own."""
    path = tmp_path / "gains.safetensors"
    tensors, card = pretrained(path, codec), read_weights(path, "the adapter")[1]
    rng = torch.Generator().manual_seed(0)
    gains = {n: p + 0.3 * torch.randn(p.shape, generator=rng) for n, p in codec.named_parameters() if n in codec.gains}
    write_weights(path, tensors | {name: value.half().float() for name, value in gains.items()}, card)
    return path


@BOTH
@pytest.mark.parametrize("quality", [2, 4.5])
def test_gains_of_an_adapter_replace_those_of_the_codec_in_encoder_and_decoder(
    codec, with_gains, make_image, name, quality
):
    codec = at_quality(codec, quality)
    method, x = load_method(name, codec, adapter=with_gains), torch.stack([make_image(), make_image() / 2])
    adapted = prepare(method, codec, x)
    files = api.write(codec, adapted.latents(x), (64, 64), method, adapted)
    with torch.no_grad():
        expected = adapted.codec.synthesize(adapted.codec.rate(adapted.latents(x)).y_hat).clamp(0, 1)
    for data, image in zip(files, expected, strict=True):
        torch.testing.assert_close(lc.decode(data, codec, adapter=with_gains), image, atol=1e-4, rtol=0)
    before, after = codec.gain(codec.log_gain), adapted.codec.gain(adapted.codec.log_gain)
    assert before.shape == after.shape == (1, codec.M, 1, 1) and not torch.equal(before, after)


def test_an_adapter_with_half_of_the_gains_is_refused(codec, with_gains):
    tensors, card = read_weights(with_gains, "the adapter")
    write_weights(with_gains, {name: value for name, value in tensors.items() if name != "log_inverse"}, card)
    with pytest.raises(lc.LoraCompError, match="is not an adapter of tic-v: log_gain does not match its layers"):
        load_method("svd_lora", codec, adapter=with_gains)


def test_a_missing_adapter_raises_with_its_identity(codec, coded):
    data, _ = coded
    with pytest.raises(lc.BitstreamError, match=lc.info(data)["adapter"]):
        lc.decode(data, codec)


def test_an_adapter_of_other_weights_raises(codec, coded):
    data, path = coded
    pretrained(path, codec, codec_hash=b"else")
    with pytest.raises(lc.LoraCompError, match="other weights"):
        lc.decode(data, codec, adapter=path)
    with pytest.raises(lc.LoraCompError, match="other weights"):
        load_method("svd_lora", codec, adapter=path)


def test_an_adapter_of_another_file_is_told_apart_from_a_missing_one(codec, coded, tmp_path):
    data, path = coded
    tensors, card = read_weights(path, "the adapter")
    write_weights(tmp_path / "other.safetensors", {k: 2 * v for k, v in tensors.items()}, card)
    with pytest.raises(lc.BitstreamError, match=f"encoded with the adapter {lc.info(data)['adapter']}, and .*other"):
        lc.decode(data, codec, adapter=tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "load",
    [
        lambda codec, path, data: load_method("svd_lora", codec, adapter=path),
        lambda codec, path, data: lc.decode(data, codec, adapter=path),
    ],
)
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None])
def test_a_file_that_is_no_adapter_is_named(codec, coded, tmp_path, load, content):
    path = tmp_path / "peft.safetensors"
    if content is None:
        write_weights(path, {"base_model.model.lora_A.weight": torch.zeros(4, 8)}, {})
    else:
        path.write_bytes(content)
    with pytest.raises(lc.LoraCompError, match=r"peft\.safetensors is not a"):
        load(codec, path, coded[0])


def test_a_name_that_is_neither_a_file_nor_a_task_lists_the_tasks(codec, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    for task in ("cls-a", "det-b"):
        pretrained(zoo.adapter_path("tic-v", None, "svd_lora", task), codec)
    for name in ("svd_lora", "lora"):
        with pytest.raises(lc.LoraCompError, match=r"tic-v \(cls-a, det-b\); there is no file cls-b"):
            load_method(name, codec, adapter="cls-b")


@pytest.mark.parametrize("option", [{"rank": 2}, {"alpha": 8}, {"mlp": False}, {"seed": 0}, {"rank": 4, "alpha": 1}])
def test_options_of_a_seeded_adapter_are_not_ignored_beside_a_pretrained_one(codec, coded, option):
    with pytest.raises(lc.LoraCompError, match=f"{' and '.join(option)} can be set of a seeded adapter.*adapter=null"):
        load_method("svd_lora", codec, adapter=coded[1], **option)
    made = load_method("svd_lora", codec, adapter=None, **option).adapter
    assert made.identity == seeded(codec, "svd_lora", **option).identity


def test_plain_lora_starts_from_the_adapter_of_svd_lora(codec, make_image, tmp_path, monkeypatch):
    """S is folded into U, and the file identifies the folded adapter."""
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    tensors = pretrained(zoo.adapter_path("tic-v", None, "svd_lora", "human"), codec)
    assert any(not torch.equal(t, torch.ones_like(t)) for k, t in tensors.items() if k.endswith(".S"))
    lora, svd_lora = (load_method(name, codec, "human") for name in ("lora", "svd_lora"))
    assert all(torch.equal(t, torch.ones_like(t)) for k, t in lora.adapter.tensors.items() if k.endswith(".S"))
    with torch.no_grad():
        made, expected = (prepare(method, codec).codec(make_image()[None])["x_hat"] for method in (lora, svd_lora))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    data = written(codec, lora, make_image()[None])
    assert lora.adapter.identity != svd_lora.adapter.identity
    assert torch.equal(lc.decode(data, codec), lc.decode(data, codec, method=lora))


def test_shipped_adapters_are_selected_by_task_and_codec(codec, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    tensors = pretrained(zoo.adapter_path("tic-v", None, "svd_lora", "human"), codec)
    method = load_method("svd_lora", codec, "human")
    assert method.adapter.identity == identify(tensors)
    assert method_of_file("svd_lora", method.adapter.identity, codec).adapter.identity == method.adapter.identity
    assert load_method("svd_lora", codec, "cls-scenes").adapter.identity == seeded(codec, "svd_lora").identity
    for chosen in (
        load_method("svd_lora", codec, "cls-scenes", adapter="human"),  # the adapter of another task
        load_method("svd_lora", codec, "cls-scenes+human"),
    ):  # the first of several tasks that has one
        assert chosen.adapter.identity == identify(tensors)

    other = lc.load_codec("tic-v", 2, weights=None)
    assert load_method("svd_lora", other, "human").adapter.identity == seeded(other, "svd_lora").identity
    with pytest.raises(lc.BitstreamError, match="not available"):
        method_of_file("svd_lora", identify(tensors), other)


@pytest.mark.parametrize(
    "name, identity",
    [
        ("transtic", bytes(4)),
        ("none", bytes(4)),
        ("svd_lora", bytes(4)),
        ("svd_lora", bytes([0, 4, 0, 0])),
        ("svd_lora", None),
    ],
)
def test_invalid_identities_raise(codec, name, identity):
    with pytest.raises(lc.BitstreamError):
        method_of_file(name, identity, codec)


def test_updates_that_overflow_weights_raise(codec):
    method = LowRank("lora", seeded(codec, "lora", rank=1, alpha=255))
    count = sum(v.numel() for k, v in method.adapter.tensors.items() if k.startswith("g_s") and k[-1] in "UV")
    huge = np.full(count, 2**31 - 1, np.int32)
    adapter = {k: v * 1e30 for k, v in method.adapter.tensors.items()}
    broken = LowRank("lora", Adapter(adapter, 255, method.adapter.identity))
    with pytest.raises(lc.BitstreamError, match="updates are invalid"):
        broken.restore(codec, updates.encode(huge, 0))
