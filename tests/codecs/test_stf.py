"""STF: files of any size, adapted ones, and training."""

import pytest
import torch
from PIL import Image

import lora_comp as lc
from lora_comp import api, train
from lora_comp.codecs.stf import PatchMerging
from lora_comp.methods.low_rank import ATTENTION, MLP, layers


@pytest.mark.parametrize("size", [(1, 1), (63, 65), (1, 300), (130, 200)])
def test_files_of_any_size_hold_the_latents_of_the_encoder(stf, make_image, size):
    image = make_image(*size)
    coded = lc.encode(image, stf, method="none")
    assert lc.info(coded.data)["codec"] == "stf-s" and lc.info(coded.data)["quality"] == 2
    decoded = lc.decode(coded.data, stf)
    assert decoded.shape == image.shape
    with torch.no_grad():
        expected = stf.output.crop(stf(api.pad(image[None], 64))["x_hat"], size)[0]
    assert (decoded - expected).abs().max() < 0.05  # float32 may round a latent the other way


def test_decoding_a_file_again_gives_the_same_bits(stf, make_image):
    data = lc.encode(make_image(100, 70), stf, method="none").data
    assert torch.equal(lc.decode(data, stf), lc.decode(data, stf))
    assert lc.encode(make_image(100, 70), stf, method="none").data == data


def test_a_file_adapts_to_its_image(stf, human, make_image):
    coded = lc.encode(make_image(64, 128), stf, human, steps=2)
    assert coded.loss_after <= coded.loss_before
    assert lc.decode(coded.data, stf).shape == (3, 64, 128)


def test_training_writes_weights_that_load(tmp_path, make_image):
    for i in range(2):
        pixels = 255 * make_image(256 + i, 256).permute(1, 2, 0).numpy()
        Image.fromarray(pixels.astype("uint8")).save(tmp_path / f"{i}.png")
    words = ["what=codec", "codec=stf-s", "quality=[6]", "steps=2", "batch=2", f"images=[{tmp_path}]"]
    assert train.main([*words, f"work={tmp_path}", f"into={tmp_path / 'out'}"]) == 0
    codec = lc.load_codec("stf-s", 6, tmp_path / "out" / "stf-s-q6.safetensors")
    assert lc.decode(lc.encode(make_image(), codec, method="none").data, codec).shape == (3, 64, 64)


def test_adapters_find_the_layers_of_every_block(stf):
    blocks = sum(stage.count("blocks") for stage in layers(stf, ATTENTION + MLP)) // 4
    assert blocks == 2 * 5
    assert "g_a.1.blocks.0.mlp.fc1" in layers(stf, ATTENTION + MLP)


def test_patches_are_merged_by_columns():
    """The order of the published weights: both rows of the left column, then both of the right."""
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    torch.nn.init.zeros_(merging.reduction.weight)
    merging.reduction.weight.data[:, 1] = 1
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(merging(x)[0, 0], x[0, 0, 1::2, ::2])


def test_sides_that_are_no_multiples_of_64_are_refused(stf):
    with pytest.raises(ValueError, match="multiples of 64"):
        stf.latents(torch.zeros(1, 3, 64, 100))
