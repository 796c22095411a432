"""encode and decode: what is promised of every file, and of every input."""

import dataclasses
import zlib

import pytest
import torch

import lora_comp as lc
from lora_comp import bitstream
from lora_comp.methods import svd_lora
from lora_comp.tasks.human import Human, psnr

SIZES = [(1, 1), (1, 300), (63, 65), (64, 64), (130, 70)]


def coded_for(codec, task, image, **options):
    return lc.encode(image, codec, task, **({"method": "svd_lora", "steps": 4} | options))


@pytest.fixture(scope="module")
def adapted(codec, human, make_image):
    """A small file that is adapted."""
    coded = coded_for(codec, human, make_image())
    assert coded.method == "svd_lora"
    return coded


@pytest.mark.parametrize("method", ["none", "svd_lora"])
@pytest.mark.parametrize("size", SIZES)
def test_any_size_comes_back(codec, human, make_image, size, method):
    coded = coded_for(codec, human, make_image(*size), method=method, steps=2)
    decoded = lc.decode(coded.data, codec)
    assert decoded.shape == (3, *size)
    assert decoded.dtype == torch.float32
    assert decoded.min() >= 0 and decoded.max() <= 1
    assert coded.bpp == 8 * len(coded.data) / (size[0] * size[1])


@pytest.mark.parametrize("method", ["none", "svd_lora", "lora"])
@pytest.mark.parametrize("name", ["human", "cls"])
def test_the_losses_are_the_objective_of_decoded_files(request, codec, make_image, name, method):
    task, image = request.getfixturevalue(name), make_image(63, 65)
    coded, plain = (coded_for(codec, task, image, method=m) for m in (method, "none"))

    def objective(data):
        distortion = task.distortion(lc.decode(data, codec)[None], task.targets(image[None])).item()
        return task.weight(codec.quality) * distortion + 8 * len(data) / (63 * 65)

    assert coded.loss_before == pytest.approx(objective(plain.data), rel=1e-5)
    assert coded.loss_after == pytest.approx(objective(coded.data), rel=1e-5)
    assert coded.loss_after <= coded.loss_before


def test_adapting_pays_here(adapted):
    assert adapted.loss_after < 0.98 * adapted.loss_before
    assert lc.info(adapted.data)["method"] == "svd_lora"


@pytest.mark.parametrize("recipe", ["latents", "adapter", "published"])
def test_a_file_decodes_whatever_the_encoder_trained(codec, human, make_image, adapted, recipe):
    image = make_image()
    coded = coded_for(codec, human, image, recipe=recipe)
    decoded = lc.decode(coded.data, codec)
    distortion = human.weight(codec.quality) * human.loss(decoded[None], image[None]).item()
    assert coded.loss_after == pytest.approx(distortion + coded.bpp, rel=1e-5)
    assert coded.loss_after < coded.loss_before
    assert (coded.data == adapted.data) == (recipe == "latents")


@pytest.fixture(scope="module")
def alike(make_image):
    """Three images of one size that have little in common."""
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
def test_an_image_is_as_good_in_a_batch_as_alone(codec, human, alike, options):
    options = {"steps": 4} | options
    coded = lc.encode_batch(torch.stack(alike), codec, human, **options)
    assert len({one.data for one in coded}) == 3
    for image, one in zip(alike, coded, strict=True):
        alone = lc.encode(image, codec, human, **options)
        assert (one.method, one.loss_before) == (alone.method, pytest.approx(alone.loss_before, rel=1e-3))
        assert one.loss_after == pytest.approx(alone.loss_after, rel=3e-3)
        distortion = human.weight(codec.quality) * human.loss(lc.decode(one.data, codec)[None], image[None]).item()
        assert one.loss_after == pytest.approx(distortion + one.bpp, rel=1e-5)


def test_the_order_of_images_in_a_batch_does_not_matter(codec, cls, alike):
    forth, back = (lc.encode_batch(images, codec, cls, steps=4) for images in (alike, alike[::-1]))
    for one, other in zip(forth, back[::-1], strict=True):
        assert (one.method, one.loss_after) == (other.method, pytest.approx(other.loss_after, rel=3e-3))


def test_an_image_to_which_adapting_does_not_pay_stays_plain_beside_others(codec, human, alike, monkeypatch):
    """Whatever becomes of it, the others gain."""
    refine = svd_lora.refine

    def spoil(adapted, *arguments, **options):
        refine(adapted, *arguments, **options)
        with torch.no_grad():
            adapted.transmitted()[0].latent[1] += 100

    monkeypatch.setattr(svd_lora, "refine", spoil)
    coded = lc.encode_batch(alike, codec, human, steps=4)
    assert [one.method for one in coded] == ["svd_lora", "none", "svd_lora"]


@pytest.mark.parametrize("sizes, line", [([(8, 9), (8, 9), (9, 8)], "of one size, not of 8x9 and 9x8"), ([], "none")])
def test_images_of_several_sizes_make_no_batch(codec, human, make_image, sizes, line):
    with pytest.raises(lc.LoraCompError, match=line):
        lc.encode_batch([make_image(*size) for size in sizes], codec, human)


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 3, "lr": 1e6}])
def test_the_plain_file_is_written_where_adapting_does_not_pay(codec, human, make_image, options):
    coded = coded_for(codec, human, make_image(), **options)
    assert coded.method == lc.info(coded.data)["method"] == "none"
    assert coded.data == coded_for(codec, human, make_image(), method="none").data
    assert coded.loss_after == coded.loss_before


def test_the_same_seed_gives_the_same_file(codec, human, make_image, adapted):
    assert coded_for(codec, human, make_image()).data == adapted.data


def test_encoding_leaves_the_codec_alone(codec, human, make_image):
    before = {k: v.clone() for k, v in codec.state_dict().items()}
    coded_for(codec, human, make_image())
    assert all(torch.equal(v, codec.state_dict()[k]) for k, v in before.items())
    assert not codec.training and not any(p.requires_grad for p in codec.parameters())


def test_another_process_decodes_the_same_image(codec, weights, adapted):
    """As far as one can tell within a process: nothing is kept but the weights and the bytes."""
    again = lc.load_codec("tic-s", 2, weights)
    assert torch.equal(lc.decode(adapted.data, again), lc.decode(adapted.data, codec))


def test_a_file_of_another_method_is_decoded_with_its_own(codec, human, make_image):
    """Seeded adapters of both methods have the same identity."""
    lora = lc.load_method("lora", codec)
    coded = coded_for(codec, human, make_image(), method=lora, lr=5e-3)
    assert coded.method == "lora"
    other = lc.load_method("svd_lora", codec)
    assert torch.equal(lc.decode(coded.data, codec, method=other), lc.decode(coded.data, codec, method=lora))


def test_info_accounts_for_every_byte(codec, adapted):
    told = lc.info(adapted.data)
    assert told["bytes"] == len(adapted.data)
    assert told["bytes_header"] + told["bytes_z"] + told["bytes_y"] + told["bytes_adapter"] == len(adapted.data)
    assert told["bytes_header"] <= 36
    assert (told["height"], told["width"], told["codec"], told["quality"]) == (64, 64, "tic-s", 2)
    assert told["codec_hash"] == codec.hash.hex()
    assert told["bpp"] == adapted.bpp


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
def test_what_is_no_image_is_refused_in_one_line(codec, human, image):
    with pytest.raises(lc.LoraCompError, match="image must") as error:
        lc.encode(image, codec, human)
    assert "\n" not in str(error.value)


def test_a_double_or_half_image_is_an_image(codec, make_image):
    expected = lc.encode(make_image(), codec, method="none").data
    assert lc.encode(make_image().double(), codec, method="none").data == expected
    assert lc.encode(make_image().half(), codec, method="none").bpp > 0


def test_a_recipe_that_is_not_there(codec, human, make_image):
    with pytest.raises(lc.LoraCompError, match="recipe must be one of latents, adapter, published, not 'all'"):
        coded_for(codec, human, make_image(), recipe="all")


def test_adapting_needs_a_task(codec, make_image):
    with pytest.raises(lc.LoraCompError, match="needs a task"):
        lc.encode(make_image(), codec, None, method="svd_lora")
    plain = lc.encode(make_image(), codec, None, method="none")
    assert (plain.method, plain.loss_before, plain.loss_after) == ("none", None, None)


@pytest.mark.parametrize("options", [{"quality": 9}, {"quality": 0}, {"name": "jpeg"}])
def test_a_codec_that_is_not_there(options):
    with pytest.raises(lc.LoraCompError):
        lc.load_codec(**({"name": "tic-s", "quality": 1, "weights": None} | options))


def test_weights_of_another_codec_or_of_none(tmp_path, weights):
    with pytest.raises(lc.LoraCompError, match="does not hold the weights of tic"):
        lc.load_codec("tic", 2, weights)
    (tmp_path / "a.safetensors").write_text("no weights")
    with pytest.raises(lc.LoraCompError, match="not a safetensors file"):
        lc.load_codec("tic-s", 2, tmp_path / "a.safetensors")
    with pytest.raises(lc.LoraCompError, match="missing"):
        lc.load_codec("tic-s", 2, tmp_path / "b.safetensors")


@pytest.mark.parametrize("quality", [1, 2, 3, 4])
def test_every_quality_ships_and_decodes_without_being_handed_its_codec(make_image, quality):
    codec = lc.load_codec("tic-s", quality)
    coded = lc.encode(make_image(130, 70), codec, method="none")
    decoded = lc.decode(coded.data)
    assert (decoded - make_image(130, 70)).square().mean() < 0.003  # above 25 dB


def test_a_file_of_other_weights(adapted):
    other = lc.load_codec("tic-s", 2, weights=None)
    with pytest.raises(lc.BitstreamError, match="other weights"):
        lc.decode(adapted.data, other)
    with pytest.raises(lc.BitstreamError):
        lc.decode(adapted.data)  # nor did those that ship write it


def test_every_flipped_byte_is_told(codec, adapted):
    for i in range(len(adapted.data)):
        damaged = bytearray(adapted.data)
        damaged[i] ^= 0x41
        with pytest.raises(lc.BitstreamError):
            lc.decode(bytes(damaged), codec)


def test_every_cut_is_told(codec, adapted):
    for length in range(len(adapted.data)):
        with pytest.raises(lc.BitstreamError):
            lc.decode(adapted.data[:length], codec)
    with pytest.raises(lc.BitstreamError):
        lc.decode(adapted.data + b"\0", codec)


def test_damage_under_a_mended_checksum_is_a_bitstream_error_or_an_image(codec, adapted):
    """A forger can compute CRC-32 too. The latents have a second one; only an adapter's change can go unseen."""
    _, sections = bitstream.read(adapted.data)
    told = 0
    for i in range(0, len(adapted.data) - 4, 7):
        damaged = bytearray(adapted.data[:-4])
        damaged[i] ^= 0x10
        damaged += zlib.crc32(damaged).to_bytes(4, "little")
        try:
            decoded = lc.decode(bytes(damaged), codec)
        except lc.BitstreamError:
            told += 1
        else:
            found, others = bitstream.read(bytes(damaged))
            assert others.latents == sections.latents
            assert decoded.shape == (3, found.height, found.width)
    assert told > len(adapted.data) // 7 // 2


@pytest.mark.parametrize("method", ["transtic", "somebody-elses"])
def test_a_file_of_a_method_to_come_names_it(codec, adapted, method):
    header, sections = bitstream.read(adapted.data)
    fields = vars(header) | {"method": method}
    with pytest.raises(lc.BitstreamError, match=method):
        lc.decode(bitstream.write(bitstream.Header(**fields), sections), codec)


def test_a_file_that_lacks_what_its_method_needs(codec, adapted):
    header, sections = bitstream.read(adapted.data)
    with pytest.raises(lc.BitstreamError, match="names no adapter"):
        lc.decode(bitstream.write(dataclasses.replace(header, adapter_hash=None), sections), codec)
    with pytest.raises(lc.BitstreamError, match="no payload"):
        lc.decode(bitstream.write(header, dataclasses.replace(sections, payload=None)), codec)
    with pytest.raises(lc.BitstreamError, match="holds layer3, its codec decodes to an image"):
        lc.decode(bitstream.write(dataclasses.replace(header, features="layer3"), sections), codec)
    with pytest.raises(lc.BitstreamError, match="has 1 sections of latents"):
        lc.decode(bitstream.write(header, dataclasses.replace(sections, latents=sections.latents[:1])), codec)


def test_a_large_image_is_adapted_in_tiles_as_well_as_whole(codec, human, make_image):
    """Fine-tuning then takes bounded memory, and no seam shows."""
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


def test_the_task_sees_no_more_at_once_than_a_tile(codec, make_image):
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


def test_large_images_in_a_batch_are_taken_in_tiles_too(codec, human, make_image):
    images = [make_image(60, 130), make_image(300, 130)[:, :60]]
    for one, image in zip(lc.encode_batch(images, codec, human, steps=3, tile=128), images, strict=True):
        alone = coded_for(codec, human, image, steps=3, tile=128)
        assert (one.method, one.loss_after) == (alone.method, pytest.approx(alone.loss_after, rel=3e-3))
