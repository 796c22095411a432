"""Published checkpoints give the results of the published code (LORA_COMP_SHARED/golden)."""

import numpy as np
import pytest
import torch

import lora_comp as lc
from lora_comp.methods.low_rank import LowRankLinear

SYSTEMS = ["tic", "tic_svdlora", "transtic", "stf", "alice"]


@pytest.mark.data
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_published_checkpoint_matches_golden_outputs(golden, system):
    state, x, expected = golden(system)
    out = lc.from_reference(system, state)(x)
    for name in {"y", "scales", "means", "x_hat"} & expected.keys():
        error = np.abs(out[name].numpy() - expected[name]).max()
        assert error <= 1e-4 * expected[name].std(), name
    for name in ("y_hat", "z_hat"):  # a value midway between two integers may round either way
        differ = np.abs(out[name].numpy() - expected[name]) > 1e-3
        assert differ.mean() <= 1e-3, name
    bits = -out["likelihoods"]["y"].double().log2().sum().item()
    assert bits == pytest.approx(float(expected["bits_y"]), rel=1e-3)


@pytest.mark.data
@pytest.mark.parametrize(
    "change, message",
    [
        ({"lrp_transforms.11.8.bias": None}, r"lacks lrp_transforms\.11\.8\.bias$"),
        ({"syn_layers.2.extra": torch.zeros(1)}, r"has an unexpected entry syn_layers\.2\.extra$"),
        ({"layers.0.blocks.2.extra": torch.zeros(1)}, r"has an unexpected entry layers\.0\.blocks\.2\.extra$"),
        ({"h_mean_s.2.0.bias": torch.zeros(7)}, r"h_mean_s\.2\.0\.bias is \(7,\), not \(1152,\)$"),
    ],
)
def test_errors_have_the_published_names_of_stf(golden, change, message):
    state = {k: v for k, v in (golden("stf")[0] | change).items() if v is not None}
    with pytest.raises(lc.LoraCompError, match=message):
        lc.from_reference("stf", state)


@pytest.fixture(scope="module")
def alice(golden):
    """The state dict and the image of ALICE."""
    return golden("alice")[:2]


@pytest.mark.data
@pytest.mark.parametrize("size", [(64, 64), (128, 320)])
def test_alice_at_other_sizes_is_stf_with_merged_weights(alice, size):
    """MALICE: W + alpha (A B)^T in place of W. Roundings may differ, so the transforms are compared."""
    state, image = alice
    x, merged = image[..., : size[0], :].repeat(1, 1, 1, 2)[..., : size[1]], {}
    for key, value in state.items():
        layer, _, last = key.rpartition(".")
        if last == "weight" and layer.endswith(".linear"):
            a, b = (state[f"{layer.removesuffix('linear')}lora.W_{factor}"] for factor in "ab")
            value = value + 8 * (a @ b).T
        if not key.endswith((".W_a", ".W_b")):
            merged[key.replace(".linear.", ".")] = value
    adapted, plain = lc.from_reference("alice", state), lc.from_reference("stf", merged)
    y, y_hat = plain.latents(x)["y"], plain.rate(plain.latents(x)).y_hat
    for ours, theirs in [(adapted.latents(x)["y"], y), (adapted.synthesize(y_hat), plain.synthesize(y_hat))]:
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.std()


FC1 = "layers.0.blocks.0.mlp.fc1"


@pytest.mark.data
@pytest.mark.parametrize(
    "change, message",
    [
        ({f"{FC1}.lora.W_a": None}, rf"alice: it lacks {FC1}\.lora\.W_a$"),
        ({f"{FC1}.lora.W_a": None, f"{FC1}.lora.W_b": None}, rf"lacks {FC1}\.lora\.W_a$"),
        ({f"{FC1}.linear.bias": None}, rf"alice: it lacks {FC1}\.linear\.bias$"),
        ({f"{FC1}.lora.W_b": torch.zeros(4, 192)}, rf"{FC1}\.lora\.W_b is \(4, 192\), not \(8, 192\)$"),
        ({f"{FC1}.lora.W_c": torch.zeros(1)}, rf"has an unexpected entry {FC1}\.lora\.W_c$"),
        ({"layers.0.blocks.0.attn.proj.lora.W_a": torch.zeros(1)}, r"unexpected entry .*proj\.lora\.W_a$"),
        ({"layers.9.blocks.0.mlp.fc1.lora.W_a": torch.zeros(1)}, r"unexpected layer layers\.9\.blocks\.0\.mlp\.fc1$"),
    ],
)
def test_errors_have_the_published_names_of_alice(alice, change, message):
    state = {k: v for k, v in (alice[0] | change).items() if v is not None}
    with pytest.raises(lc.LoraCompError, match=message):
        lc.from_reference("alice", state)


@pytest.mark.data
def test_alice_may_adapt_some_stages_only(alice):
    """As its configuration selects them: the others have plain layers."""
    state, _ = alice
    fewer = {
        k.replace(".linear.", ".") if "layers.0" in k else k: v
        for k, v in state.items()
        if not ("layers.0" in k and ".lora." in k)
    }
    made = lc.from_reference("alice", fewer)
    names = {n.rsplit(".blocks", 1)[0] for n, m in made.named_modules() if isinstance(m, LowRankLinear)}
    assert names == {"g_a.3", "g_a.5", "g_a.7", "g_s.2", "g_s.4", "g_s.6"}
    with pytest.raises(lc.LoraCompError, match=r"no entry with lora\.W_a"):
        lc.from_reference("alice", {"end_conv.0.bias": torch.zeros(192)})


@pytest.fixture(scope="module")
def transtic(golden):
    """The state dict and the image of TransTIC."""
    return golden("transtic")[:2]


@pytest.mark.data
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g_a0_prompt.up1.3.bias": None}, r"lacks g_a0_prompt\.up1\.3\.bias$"),
        ({"g_a0_prompt.classifier.0.weight": None}, r"lacks g_a0_prompt\.classifier\.0\.weight$"),
        ({"g_a2_prompt.bias": None}, r"lacks g_a2_prompt\.bias$"),
        ({"g_a2_prompt_layers.3.bias": torch.zeros(7)}, r"g_a2_prompt_layers\.3\.bias is \(7,\), not \(128,\)$"),
        ({"g_a2_prompt_layers.4.bias": torch.zeros(128)}, r"unexpected entry g_a2_prompt_layers\.4\.bias$"),
        ({"g_a0_prompt.down1.1.running_mean": torch.zeros(32)}, r"lacks g_a0_prompt\.down1\.1\.running_var$"),
        ({"g_s9.residual_group.prompt_embeddings": torch.zeros(2, 16, 9)}, r"entry g_s9\.residual_group\.prompt_emb"),
        ({"g_a1.residual_group.prompt_embeddings": torch.zeros(2, 16, 128)}, r"unexpected entry g_a1\.residual_group"),
        (
            {"g_s4.residual_group.blocks.0.mlp.fc1.bias": None},
            r"lacks g_s4\.residual_group\.blocks\.0\.mlp\.fc1\.bias$",
        ),
        ({"g_a0.bias": torch.zeros(64)}, r"g_a0\.bias is \(64,\), not \(128,\)$"),
    ],
)
def test_errors_have_the_published_names_of_transtic(transtic, change, message):
    state = {k: v for k, v in (transtic[0] | change).items() if v is not None}
    with pytest.raises(lc.LoraCompError, match=f"not a checkpoint of transtic: .*{message}"):
        lc.from_reference("transtic", state)


@pytest.mark.data
def test_transtic_may_have_prompts_in_some_stages_of_the_decoder(transtic):
    """As its configuration selects them, and another number of them."""
    state = {
        k: v[:, :9] if "embeddings" in k else v
        for k, v in transtic[0].items()
        if not k.startswith("g_s4.residual_group.prompt")
    }
    made = lc.from_reference("transtic", state)
    assert {n: tuple(p.shape) for n, p in made.g_s.prompts.named_parameters()} == {
        "tokens.0": (2, 9, 192), "tokens.2": (6, 9, 128), "tokens.6": (2, 9, 128)
    }  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize("size", [(64, 64), (128, 320), (192, 64)])
def test_transtic_computes_images_of_other_sizes(transtic, size):
    state, image = transtic
    x = image[..., : size[0], :].repeat(1, 1, 1, 2)[..., : size[1]]
    with torch.no_grad():
        out = lc.from_reference("transtic", state)(x)
    assert out["x_hat"].shape == x.shape and all(value.isfinite().all() for value in (out["x_hat"], out["y"]))


@pytest.mark.data
def test_a_state_dict_of_another_system_raises(golden):
    state, _, _ = golden("tic")
    with pytest.raises(lc.LoraCompError, match="not a checkpoint of tic_svdlora"):
        lc.from_reference("tic_svdlora", state)
    state.pop("g_a0.weight")
    with pytest.raises(lc.LoraCompError, match=r"lacks g_a\.0\.weight"):
        lc.from_reference("tic", state)


def test_an_unknown_system_raises():
    with pytest.raises(lc.LoraCompError, match="available are tic"):
        lc.from_reference("jpeg", {})


@pytest.mark.data
def test_weights_of_another_shape_raise(golden):
    state, _, _ = golden("tic")
    state["g_a0.bias"] = torch.zeros(64)
    with pytest.raises(lc.LoraCompError, match=r"g_a\.0\.bias is \(64,\), not \(128,\)"):
        lc.from_reference("tic", state)
