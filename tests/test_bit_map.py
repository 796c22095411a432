"""Where the bits of a file go: `lc.bit_map` and `lora-comp info cat.lcz bits=bits.png`."""

import numpy as np
import pytest
import torch
from PIL import Image

import lora_comp as lc
from lora_comp import cli
from lora_comp.data import write_image
from lora_comp.entropy.hyperprior import HyperpriorCoder
from lora_comp.methods import load_method


def latent_bytes(data):
    info = lc.info(data)
    return info["bytes_z"] + info["bytes_y"]


@pytest.mark.parametrize("kind", ["codec", "fixed_rate_codec", "stf"])
def test_the_map_sums_to_the_latents_of_the_file(request, kind, make_image):
    """Of priors of one step, of two, and of slices with a grid, and of an image that is padded."""
    codec = request.getfixturevalue(kind)
    data = lc.encode(make_image(150, 200), codec, method="none").data
    bits = lc.bit_map(data, codec)
    assert bits.shape == (192 // 16, 256 // 16) and bits.dtype == np.float32 and (bits > 0).all()
    assert bits.sum() / 8 == pytest.approx(latent_bytes(data), rel=0.01)


def test_it_is_nearly_the_rate_that_the_codec_estimates(trained_codec, make_image):
    """Which is that of its Gaussians, while the coder has tables."""
    codec, x = trained_codec, make_image(128, 192)[None]
    with torch.no_grad():
        rate = codec.rate(codec.latents(x))
    of_y, of_z = (-rate.likelihoods[name].log2()[0].sum(0) for name in "yz")
    expected = of_y + of_z.repeat_interleave(4, 0).repeat_interleave(4, 1) / 16
    bits = lc.bit_map(lc.encode(x[0], codec, method="none").data, codec)
    np.testing.assert_allclose(bits, expected.numpy(), rtol=0.02, atol=1)


def test_detail_takes_the_bits(trained_codec):
    image = torch.full((3, 128, 256), 0.5)
    noise = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    image[:, :, 128:] = noise
    bits = lc.bit_map(lc.encode(image, trained_codec, method="none"))
    assert bits[:, 8:].sum() > 10 * bits[:, :8].sum()


@pytest.mark.parametrize("method", ["svd_lora", "lora"])
def test_an_adapted_file_needs_no_adapter_for_it(codec, human, make_image, method):
    made = load_method(method, codec, "human")
    made.guarded = False
    data = lc.encode(make_image(150, 200), codec, human, made, steps=2).data
    assert lc.info(data)["method"] == method
    assert lc.bit_map(data, codec).sum() / 8 == pytest.approx(latent_bytes(data), rel=0.01)


def test_a_codec_without_it_says_so(codec, make_image, monkeypatch):
    data = lc.encode(make_image(), codec, method="none").data
    monkeypatch.delattr(HyperpriorCoder, "bits")
    with pytest.raises(lc.LoraCompError, match="the codec tic-v does not say where its bits go"):
        lc.bit_map(data, codec)


@pytest.fixture
def coded(codec, make_image, tmp_path):
    (tmp_path / "cat.lcz").write_bytes(lc.encode(make_image(70, 100), codec, method="none").data)
    return tmp_path / "cat.lcz"


def test_info_writes_an_image_and_an_array(coded, codec, weights, tmp_path, capsys):
    words = ["info", str(coded), f"weights={weights}"]
    assert cli.command([*words, f"bits={tmp_path / 'bits.png'}"]) == 0
    bits = lc.bit_map(coded, codec)
    assert f"{tmp_path / 'bits.png'}: {bits.sum() / 8:.1f} bytes in 8x8 positions" in capsys.readouterr().out
    assert Image.open(tmp_path / "bits.png").size[0] > 100
    assert cli.command([*words, f"bits={tmp_path / 'bits.npy'}"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "bits.npy"), bits)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["bits={}/bits.txt"], "name a file that ends in .png, .pdf, .svg, .npy"),
        (["bits={}/cat.lcz", "overwrite=true"], "would be written over the input"),
        (["bits={}/none/bits.png"], "No such file or directory"),
        (["weights=a"], "weights= is for bits="),
    ],
)
def test_what_cannot_be_written_is_one_line(coded, tmp_path, capsys, words, line):
    assert cli.command(["info", str(coded), *(word.format(tmp_path) for word in words)]) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_an_adapted_file_is_decoded_for_people(codec, weights, human, make_image, tmp_path, capsys):
    method = load_method("svd_lora", codec, "human")
    method.guarded = False
    data = lc.encode(make_image(70, 100), codec, human, method, lr=0.3, steps=3).data
    (tmp_path / "cat.lcz").write_bytes(data)
    words = ["decode", str(tmp_path / "cat.lcz"), str(tmp_path / "people.png"), f"weights={weights}"]
    assert cli.command([*words, "method=none"]) == 0
    write_image(tmp_path / "expected.png", lc.decode(data, codec, method="none"))
    assert (tmp_path / "people.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
    assert not torch.equal(lc.decode(data, codec, method="none"), lc.decode(data, codec))
    assert cli.command([*words, "method=svd_lora", "overwrite=true"]) == 2
    assert "method must be none or null, not 'svd_lora'" in capsys.readouterr().err
