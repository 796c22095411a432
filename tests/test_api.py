"""encode and decode: shapes, objectives, guarded methods, batches, tiles, and errors."""

import dataclasses
import zlib

import pytest
import torch

import lora_comp as lc
from lora_comp import bitstream, objective
from lora_comp.methods import svd_lora
from lora_comp.tasks.human import Human, psnr

SIZES = [(1, 1), (1, 300), (63, 65), (64, 64), (130, 70)]


def coded_for(codec, task, image, **options):
    return lc.encode(image, codec, task, **({"method": "svd_lora", "steps": 4} | options))


@pytest.fixture(scope="module")
def adapted(codec, human, make_image):
    """A small adapted file."""
    coded = coded_for(codec, human, make_image())
    assert coded.method == "svd_lora"
    return coded


@pytest.mark.parametrize("method", ["none", "svd_lora"])
@pytest.mark.parametrize("size", SIZES)
def test_images_of_any_size_keep_their_size(codec, human, make_image, size, method):
    coded = coded_for(codec, human, make_image(*size), method=method, steps=2)
    decoded = lc.decode(coded.data, codec)
    assert decoded.shape == (3, *size)
    assert decoded.dtype == torch.float32
    assert decoded.min() >= 0 and decoded.max() <= 1
    assert coded.bpp == 8 * len(coded.data) / (size[0] * size[1])


@pytest.mark.parametrize("method", ["none", "svd_lora", "lora"])
@pytest.mark.parametrize("name", ["human", "cls"])
def test_losses_are_the_objectives_of_decoded_files(request, codec, make_image, name, method):
    task, image = request.getfixturevalue(name), make_image(63, 65)
    coded, plain = (coded_for(codec, task, image, method=m) for m in (method, "none"))

    def objective(data):
        distortion = task.distortion(lc.decode(data, codec)[None], task.targets(image[None])).item()
        return task.weight(codec.quality) * distortion + 8 * len(data) / (63 * 65)

    assert coded.loss_before == pytest.approx(objective(plain.data), rel=1e-5)
    assert coded.loss_after == pytest.approx(objective(coded.data), rel=1e-5)
    assert coded.loss_after <= coded.loss_before


def test_adaptation_lowers_the_objective(adapted):
    assert adapted.loss_after < 0.98 * adapted.loss_before
    assert lc.info(adapted.data)["method"] == "svd_lora"


@pytest.mark.parametrize("recipe", ["latents", "adapter", "published"])
def test_files_of_all_recipes_decode(codec, human, make_image, adapted, recipe):
    image = make_image()
    coded = coded_for(codec, human, image, recipe=recipe)
    decoded = lc.decode(coded.data, codec)
    distortion = human.weight(codec.quality) * human.loss(decoded[None], image[None]).item()
    assert coded.loss_after == pytest.approx(distortion + coded.bpp, rel=1e-5)
    assert coded.loss_after < coded.loss_before
    assert (coded.data == adapted.data) == (recipe == "latents")


@pytest.fixture(scope="module")
def dissimilar(make_image):
    """Three dissimilar images of one size."""
    whole = make_image(300, 400)
    return [whole[:, 100:163, 50:111], torch.full((3, 63, 61), 0.5), whole[:, 200:263, 200:261].flip(0)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recipe": "adapter"},
        {"recipe": "published", "steps": 6},
        {"method": "lora", "lr": 5e-3},
        {"method": "none"},
    ],
)
def test_batch_encoding_matches_single_encoding(codec, human, dissimilar, options, monkeypatch):
    monkeypatch.setattr(objective, "use_bf16", lambda device: False)  # whose rounding makes more of the order of sums
    options = {"steps": 4} | options
    coded = lc.encode_batch(torch.stack(dissimilar), codec, human, **options)
    assert len({one.data for one in coded}) == 3
    for image, one in zip(dissimilar, coded, strict=True):
        alone = lc.encode(image, codec, human, **options)
        assert (one.method, one.loss_before) == (alone.method, pytest.approx(alone.loss_before, rel=1e-3))
        assert one.loss_after == pytest.approx(alone.loss_after, rel=3e-3)
        distortion = human.weight(codec.quality) * human.loss(lc.decode(one.data, codec)[None], image[None]).item()
        assert one.loss_after == pytest.approx(distortion + one.bpp, rel=1e-5)


def test_batch_encoding_does_not_depend_on_the_order(codec, cls, dissimilar):
    forth, back = (lc.encode_batch(images, codec, cls, steps=4) for images in (dissimilar, dissimilar[::-1]))
    for one, other in zip(forth, back[::-1], strict=True):
        assert (one.method, one.loss_after) == (other.method, pytest.approx(other.loss_after, rel=3e-3))


def test_the_plain_file_is_chosen_per_image_of_a_batch(codec, human, dissimilar, monkeypatch):
    refine = svd_lora.refine

    def spoil(adapted, *arguments, **options):
        refine(adapted, *arguments, **options)
        with torch.no_grad():
            adapted.transmitted()[0].latent[1] += 100

    monkeypatch.setattr(svd_lora, "refine", spoil)
    coded = lc.encode_batch(dissimilar, codec, human, steps=4)
    assert [one.method for one in coded] == ["svd_lora", "none", "svd_lora"]


@pytest.mark.parametrize("sizes, line", [([(8, 9), (8, 9), (9, 8)], "of one size, not of 8x9 and 9x8"), ([], "none")])
def test_batches_of_different_sizes_raise(codec, human, make_image, sizes, line):
    with pytest.raises(lc.LoraCompError, match=line):
        lc.encode_batch([make_image(*size) for size in sizes], codec, human)


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 3, "lr": 1e6}])
def test_the_plain_file_is_written_if_adaptation_does_not_help(codec, human, make_image, options):
    coded = coded_for(codec, human, make_image(), **options)
    assert coded.method == lc.info(coded.data)["method"] == "none"
    assert coded.data == coded_for(codec, human, make_image(), method="none").data
    assert coded.loss_after == coded.loss_before


def test_encoding_is_deterministic(codec, human, make_image, adapted):
    assert coded_for(codec, human, make_image()).data == adapted.data


def test_encoding_does_not_change_the_codec(codec, human, make_image):
    before = {k: v.clone() for k, v in codec.state_dict().items()}
    coded_for(codec, human, make_image())
    assert all(torch.equal(v, codec.state_dict()[k]) for k, v in before.items())
    assert not codec.training and not any(p.requires_grad for p in codec.parameters())


def test_a_reloaded_codec_decodes_the_same_image(codec, weights, adapted):
    """A codec loaded again stands for another process: see also test_decode_anywhere.py."""
    again = lc.load_codec("tic-v", 2, weights)
    assert torch.equal(lc.decode(adapted.data, again), lc.decode(adapted.data, codec))


def test_the_method_in_the_file_overrides_the_argument(codec, human, make_image):
    """Seeded adapters of both methods have the same identity."""
    lora = lc.load_method("lora", codec)
    coded = coded_for(codec, human, make_image(), method=lora, lr=5e-3)
    assert coded.method == "lora"
    other = lc.load_method("svd_lora", codec)
    assert torch.equal(lc.decode(coded.data, codec, method=other), lc.decode(coded.data, codec, method=lora))


def test_info_accounts_for_every_byte(codec, adapted):
    facts = lc.info(adapted.data)
    assert facts["bytes"] == len(adapted.data)
    assert facts["bytes_header"] + facts["bytes_z"] + facts["bytes_y"] + facts["bytes_adapter"] == len(adapted.data)
    assert facts["bytes_header"] <= 36
    assert (facts["height"], facts["width"], facts["codec"], facts["quality"]) == (64, 64, "tic-v", 2)
    assert facts["codec_hash"] == codec.hash.hex()
    assert facts["bpp"] == adapted.bpp


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(4, 8, 8),
        torch.zeros(1, 8, 8),
        torch.zeros(1, 3, 8, 8),
        torch.zeros(8, 8),
        torch.zeros(3, 0, 8),
        torch.full((3, 8, 8), 255.0),
        torch.full((3, 8, 8), -0.01),
        torch.full((3, 8, 8), torch.nan),
        torch.full((3, 8, 8), torch.inf),
    ],
)
def test_invalid_images_raise_a_one_line_error(codec, human, image):
    with pytest.raises(lc.LoraCompError, match="image must") as error:
        lc.encode(image, codec, human)
    assert "\n" not in str(error.value)


def test_float64_and_float16_images_are_accepted(codec, make_image):
    expected = lc.encode(make_image(), codec, method="none").data
    assert lc.encode(make_image().double(), codec, method="none").data == expected
    assert lc.encode(make_image().half(), codec, method="none").bpp > 0


def test_an_unknown_recipe_raises(codec, human, make_image):
    with pytest.raises(lc.LoraCompError, match="recipe must be one of latents, adapter, published, not 'all'"):
        coded_for(codec, human, make_image(), recipe="all")


def test_adaptation_without_a_task_raises(codec, make_image):
    with pytest.raises(lc.LoraCompError, match="needs a task"):
        lc.encode(make_image(), codec, None, method="svd_lora")
    plain = lc.encode(make_image(), codec, None, method="none")
    assert (plain.method, plain.loss_before, plain.loss_after) == ("none", None, None)


@pytest.mark.parametrize("options", [{"quality": 9}, {"quality": 0}, {"name": "jpeg"}])
def test_an_unknown_codec_or_quality_raises(options):
    with pytest.raises(lc.LoraCompError):
        lc.load_codec(**({"name": "tic-v", "quality": 1, "weights": None} | options))


def test_unsuitable_weights_raise(tmp_path, weights):
    with pytest.raises(lc.LoraCompError, match="does not hold the weights of tic"):
        lc.load_codec("tic", 2, weights)
    (tmp_path / "a.safetensors").write_text("no weights")
    with pytest.raises(lc.LoraCompError, match="not a safetensors file"):
        lc.load_codec("tic-v", 2, tmp_path / "a.safetensors")
    with pytest.raises(lc.LoraCompError, match="missing"):
        lc.load_codec("tic-v", 2, tmp_path / "b.safetensors")


@pytest.mark.parametrize("quality", [1, 2, 3, 4])
def test_shipped_codecs_are_loaded_by_the_name_in_the_file(make_image, quality):
    codec = lc.load_codec("tic-v", quality)
    coded = lc.encode(make_image(130, 70), codec, method="none")
    decoded = lc.decode(coded.data)
    assert (decoded - make_image(130, 70)).square().mean() < 0.003  # above 25 dB


def test_a_file_of_other_weights_raises(adapted):
    other = lc.load_codec("tic-v", 2, weights=None)
    with pytest.raises(lc.BitstreamError, match="other weights"):
        lc.decode(adapted.data, other)
    with pytest.raises(lc.BitstreamError):
        lc.decode(adapted.data)  # with the weights in the package


def test_every_altered_byte_raises(codec, adapted):
    for i in range(len(adapted.data)):
        damaged = bytearray(adapted.data)
        damaged[i] ^= 0x41
        with pytest.raises(lc.BitstreamError):
            lc.decode(bytes(damaged), codec)


def test_every_truncation_raises(codec, adapted):
    for length in range(len(adapted.data)):
        with pytest.raises(lc.BitstreamError):
            lc.decode(adapted.data[:length], codec)
    with pytest.raises(lc.BitstreamError):
        lc.decode(adapted.data + b"\0", codec)


def test_damage_with_a_valid_checksum_raises_or_decodes(codec, adapted):
    """The latents have a CRC-32 of their own; only altered updates of an adapter can go undetected."""
    _, sections = bitstream.read(adapted.data)
    detected = 0
    for i in range(0, len(adapted.data) - 4, 7):
        damaged = bytearray(adapted.data[:-4])
        damaged[i] ^= 0x10
        damaged += zlib.crc32(damaged).to_bytes(4, "little")
        try:
            decoded = lc.decode(bytes(damaged), codec)
        except lc.BitstreamError:
            detected += 1
        else:
            header, read = bitstream.read(bytes(damaged))
            assert read.latents == sections.latents
            assert decoded.shape == (3, header.height, header.width)
    assert detected > len(adapted.data) // 7 // 2


@pytest.mark.parametrize("method", ["duic", "somebody-elses"])
def test_an_unknown_method_raises_with_its_name(codec, adapted, method):
    header, sections = bitstream.read(adapted.data)
    fields = vars(header) | {"method": method}
    with pytest.raises(lc.BitstreamError, match=method):
        lc.decode(bitstream.write(bitstream.Header(**fields), sections), codec)


def test_missing_parts_of_a_file_raise(codec, adapted):
    header, sections = bitstream.read(adapted.data)
    with pytest.raises(lc.BitstreamError, match="names no adapter"):
        lc.decode(bitstream.write(dataclasses.replace(header, adapter_hash=None), sections), codec)
    with pytest.raises(lc.BitstreamError, match="no payload"):
        lc.decode(bitstream.write(header, dataclasses.replace(sections, payload=None)), codec)
    with pytest.raises(lc.BitstreamError, match="holds layer3, but its codec decodes to an image"):
        lc.decode(bitstream.write(dataclasses.replace(header, features="layer3"), sections), codec)
    with pytest.raises(lc.BitstreamError, match="has 1 sections of latents"):
        lc.decode(bitstream.write(header, dataclasses.replace(sections, latents=sections.latents[:1])), codec)


def test_tiles_give_nearly_the_objective_of_the_whole_image(codec, human, make_image):
    image = make_image(300, 420)
    whole = coded_for(codec, human, image)
    coded = coded_for(codec, human, image, tile=128)
    decoded = lc.decode(coded.data, codec)
    assert decoded.shape == image.shape
    objective = human.weight(codec.quality) * human.loss(decoded[None], image[None]).item() + coded.bpp
    assert coded.loss_after == pytest.approx(objective, rel=1e-4) and coded.loss_after < coded.loss_before
    gain = whole.loss_before - whole.loss_after
    assert coded.loss_after == pytest.approx(whole.loss_after, abs=0.05 * gain)
    assert psnr(decoded, image) > psnr(lc.decode(whole.data, codec), image) - 0.05


def test_the_task_processes_one_tile_at_a_time(codec, make_image):
    seen = set()

    class Watching(Human):
        def distortion(self, decoded, targets):
            seen.add(tuple(decoded.shape[2:]))
            return super().distortion(decoded, targets)

    image = make_image(130, 300)
    coded_for(codec, Watching(), image, steps=1, tile=128)
    assert seen == {(rows, columns) for rows in (128, 2) for columns in (128, 44)}
    seen.clear()
    coded_for(codec, Watching(), image, steps=1)
    assert seen == {(130, 300)}


def test_batches_are_processed_in_tiles(codec, human, make_image):
    images = [make_image(60, 130), make_image(300, 130)[:, :60]]
    for one, image in zip(lc.encode_batch(images, codec, human, steps=3, tile=128), images, strict=True):
        alone = coded_for(codec, human, image, steps=3, tile=128)
        assert (one.method, one.loss_after) == (alone.method, pytest.approx(alone.loss_after, rel=3e-3))
