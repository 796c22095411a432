"""Published checkpoints give the results of the published code (LORA_COMP_SHARED/golden)."""

import numpy as np
import pytest
import torch

import lora_comp as lc

SYSTEMS = ["tic", "tic_svdlora", "stf"]


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
