"""Adapt-ICMH: adapters in space and frequency for a frozen codec, which serve a task."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

import lora_comp as lc
from lora_comp.codecs import weights_hash
from lora_comp.methods import load_method
from lora_comp.methods.icmh import SFMA, IcmhOptions, Pretraining, channels
from lora_comp.train import main
from lora_comp.training import adapter as adapter_training
from lora_comp.weights import read_weights, write_weights

SMALL = IcmhOptions(width=4)


def write_adapter(path, codec, options=SMALL, size=0.05, **changes):
    """An adapter with a visible effect, in a file as `lora-comp train` writes it. size: of what it adds to a map."""
    pretraining = Pretraining(codec, options)
    card = {"codec": codec.name, "quality": codec.rate_point, "codec_hash": codec.hash.hex(), "method": "icmh"}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        n: size * torch.randn(v.shape, generator=generator) if ".up." in n else v
        for n, v in pretraining.tensors().items()
    }
    write_weights(path, tensors, card | pretraining.card | changes)
    return path


@pytest.fixture(params=["codec", "fixed_rate_codec", "stf"])
def adapted(request, tmp_path):
    """Codecs with gains, of one rate point, and with channel slices, and the method with an adapter for each."""
    codec = request.getfixturevalue(request.param)
    method = load_method("icmh", codec, adapter=str(write_adapter(tmp_path / "a.safetensors", codec)))
    method.guarded = False
    return codec, method


@pytest.fixture
def method(codec, tmp_path):
    made = load_method("icmh", codec, adapter=str(write_adapter(tmp_path / "a.safetensors", codec)))
    made.guarded = False
    return made


def plain_sfma(x, adapter):
    """As the paper has it: amplitudes are modulated, and joined with the phases again."""
    space, frequency = adapter.spatial, adapter.frequency
    added = space.up(torch.relu(space.around(space.down(x)) * space.gate(x)))
    spectrum = torch.fft.rfft2(frequency.down(x))
    amplitude, phase = spectrum.abs(), spectrum.angle()
    amplitude = amplitude * frequency.inner(torch.relu(frequency.around(amplitude))).sigmoid()
    back = torch.fft.irfft2(torch.polar(amplitude, phase), s=x.shape[2:])
    return x + added + frequency.up(torch.relu(back))


@pytest.mark.parametrize("size", [(8, 8), (5, 6), (4, 7), (1, 1)])
def test_an_adapter_modulates_amplitudes_and_leaves_phases_alone(size):
    adapter = SFMA(8, 3).double()
    for up in (adapter.spatial.up, adapter.frequency.up):
        torch.nn.init.normal_(up.weight)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(adapter(x), plain_sfma(x, adapter))


def test_the_published_adapters_are_the_default_of_tic(fixed_rate_codec):
    """Six of 64 channels, after the stages at strides 2, 4 and 8 of g_a and the layers of g_s that lead to these."""
    tensors = Pretraining(fixed_rate_codec, IcmhOptions()).tensors()
    assert channels(fixed_rate_codec) == {side: {1: 128, 3: 128, 5: 128} for side in ("g_a", "g_s")}
    assert tensors["g_a.1.spatial.around.weight"].shape == (64, 1, 5, 5)
    assert tensors["g_s.5.frequency.around.weight"].shape == (64, 1, 3, 3)
    assert sum(t.numel() for t in tensors.values()) == 287_232


def test_a_new_adapter_changes_nothing(codec, make_image, tmp_path):
    path = write_adapter(tmp_path / "a.safetensors", codec, size=0)
    made, x = load_method("icmh", codec, adapter=str(path)).prepare(codec, make_image()[None]).codec, make_image()[None]
    with torch.no_grad():
        assert torch.equal(made(x)["x_hat"], codec(x)["x_hat"])


def test_a_file_decodes_with_its_adapter_to_what_the_encoder_saw(adapted, human, make_image):
    codec, method = adapted
    image = make_image(100, 130)
    coded = lc.encode(image, codec, human, method)
    info = lc.info(coded.data)
    assert (info["method"], info["adapter"]) == ("icmh", method.identity.hex())
    assert "bytes_adapter" not in info
    decoded = lc.decode(coded.data, codec, method)
    mse = float(human.distortion(decoded[None], image[None]))
    assert coded.loss_after == pytest.approx(human.weight(codec.quality) * mse + coded.bpp, rel=1e-4)
    assert not torch.equal(decoded, lc.decode(coded.data, codec, method="none"))


def test_encoder_and_decoder_have_adapters_and_the_rest_is_the_codecs(adapted, make_image):
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


def test_one_adapter_serves_every_rate_of_a_codec_that_has_them(codec, human, make_image, method):
    image, codec = make_image(), codec.at(4.5)
    coded = lc.encode(image, codec, human, method)
    assert coded.quality == 4.5
    assert torch.equal(lc.decode(coded.data, codec, method), lc.decode(coded.data, codec.at(3), method))


def test_where_adapters_do_harm_the_plain_file_is_written(codec, human, make_image, tmp_path):
    path = write_adapter(tmp_path / "a.safetensors", codec, size=10)
    coded = lc.encode(make_image(), codec, human, load_method("icmh", codec, adapter=str(path)))
    assert (coded.method, lc.info(coded.data)["adapter"]) == ("none", None)


def test_another_process_decodes_the_identical_image(codec, weights, human, make_image, method, tmp_path):
    image = make_image(70, 90)
    (tmp_path / "cat.lcz").write_bytes(lc.encode(image, codec, human, method).data)
    program = (
        "import sys, torch, lora_comp as lc; codec = lc.load_codec('tic-v', 2, sys.argv[1]);"
        "torch.save(lc.decode(sys.argv[2], codec, adapter=sys.argv[3]), sys.argv[4])"
    )
    words = [weights, tmp_path / "cat.lcz", tmp_path / "a.safetensors", tmp_path / "decoded.pt"]
    subprocess.run([sys.executable, "-c", program, *map(str, words)], check=True)
    assert torch.equal(torch.load(tmp_path / "decoded.pt"), lc.decode(tmp_path / "cat.lcz", codec, method))


def test_what_does_not_fit_is_refused_in_a_line(codec, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(lc.LoraCompError, match=r"none ships for tic-v and the task none: .*method\.adapter=FILE$"):
        load_method("icmh", codec)
    with pytest.raises(lc.LoraCompError, match="width can be set in training alone"):
        load_method("icmh", codec, adapter=str(write_adapter(path, codec)), width=4)
    write_adapter(path, codec, codec_hash="00" * 4)
    with pytest.raises(lc.LoraCompError, match="was trained for other weights than those loaded"):
        load_method("icmh", codec, adapter=str(path))
    write_adapter(path, codec, width=8)
    with pytest.raises(lc.LoraCompError, match=r"is not an adapter of tic-v: g_a\.1\.\S* does not match its layers$"):
        load_method("icmh", codec, adapter=str(path))
    write_adapter(path, codec, size=float("nan"))
    with pytest.raises(lc.LoraCompError, match=r"is not finite; train it again$"):
        load_method("icmh", codec, adapter=str(path))
    write_adapter(path, codec, method="transtic")
    with pytest.raises(lc.LoraCompError, match="is an adapter of the method transtic, not of icmh"):
        load_method("icmh", codec, adapter=str(path))


def test_a_file_with_a_payload_is_refused(codec, method):
    with pytest.raises(lc.BitstreamError, match="has a payload"):
        method.restore(codec, b"")


def test_a_stopped_training_goes_on_to_the_same_adapter(codec, human, tmp_path):
    def train(work, stop_after=None):
        def until_stopped(step):
            if step == stop_after:
                raise KeyboardInterrupt
            return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(step))

        pretraining = Pretraining(codec, SMALL)
        return adapter_training.train(pretraining, (1, 6), human, until_stopped, tmp_path / work, lr=1e-3, steps=4)[0]

    straight = train("straight")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop_after=2)
    resumed = train("stopped")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    new = Pretraining(codec, SMALL).tensors()
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
    words = ["what=adapter", "method=icmh", "method.width=4", "task=human", "steps=2"]
    words += ["batch=2", "codec=tic-v", "codec.weights=null", "threads=1", f"images=[{tmp_path}]"]
    assert main([*words, f"work={tmp_path / 'work'}", f"into={tmp_path}"]) == 0
    path = tmp_path / "tic-v-icmh-human.safetensors"
    card = read_weights(path, "the adapter")[1]
    assert (card["quality"], card["method"], card["task"], card["width"]) == (None, "icmh", "human", 4)
    codec = lc.load_codec("tic-v", 4.5, weights=None)
    method = load_method("icmh", codec, adapter=str(path))
    method.guarded = False
    coded = lc.encode(make_image(), codec, lc.load_task("human"), method)
    assert torch.equal(lc.decode(coded.data, codec, adapter=path), lc.decode(coded.data, codec, method))
