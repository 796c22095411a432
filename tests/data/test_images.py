"""Reading and writing images: what comes in has the right values, and what cannot is one clear line."""

import io
import resource
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lora_comp.data import read_image, write_image
from lora_comp.errors import ImageError

RED, HALF = (255, 0, 0), (0, 0, 0, 128)


def one_line_about(path, error) -> bool:
    return str(path) in str(error.value) and "\n" not in str(error.value)


def saved(path, array, **options):
    Image.fromarray(np.asarray(array)).save(path, **options)
    return path


def test_colour_is_float32_in_zero_to_one_channels_first(tmp_path):
    image = read_image(saved(tmp_path / "a.png", np.full((2, 5, 3), RED, np.uint8)))
    assert image.shape == (3, 2, 5)
    assert image.dtype == torch.float32
    assert torch.equal(image[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))


def test_one_pixel(tmp_path):
    assert (
        read_image(saved(tmp_path / "a.png", np.full((1, 1, 3), 51, np.uint8))).flatten().tolist()
        == [pytest.approx(0.2)] * 3
    )


def test_grey_and_palette_become_rgb(tmp_path):
    grey = read_image(saved(tmp_path / "grey.png", np.full((4, 4), 102, np.uint8)))
    Image.fromarray(np.full((4, 4, 3), RED, np.uint8)).convert("P").save(tmp_path / "palette.png")
    assert torch.allclose(grey, torch.full((3, 4, 4), 0.4))
    assert read_image(tmp_path / "palette.png")[:, 0, 0].tolist() == [1, 0, 0]


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    image = read_image(saved(tmp_path / "a.png", values))
    assert torch.allclose(image, torch.from_numpy(values / 65535).float().expand(3, 1, 4))


def test_16_bit_colour_is_scaled_not_clipped(tmp_path):
    """Written by hand, since Pillow writes no such file."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    rows = b"\0" + np.array([65535, 32768, 0], ">u2").tobytes()
    header = (1).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert read_image(path).flatten().tolist() == pytest.approx([1, 0.5, 0], abs=1 / 255)


def test_transparency_shows_white(tmp_path):
    rgba = read_image(saved(tmp_path / "a.png", np.full((2, 2, 4), HALF, np.uint8)))
    indexed = Image.new("P", (1, 1), 0)
    indexed.putpalette([0, 0, 0])
    indexed.save(tmp_path / "b.png", transparency=0)
    assert rgba.flatten().tolist() == pytest.approx([0.5] * 12, abs=1 / 255)
    assert read_image(tmp_path / "b.png").flatten().tolist() == [1, 1, 1]


def test_cmyk_jpeg_keeps_its_colour(tmp_path):
    Image.new("RGB", (16, 16), RED).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert read_image(tmp_path / "a.jpg")[:, 8, 8].tolist() == pytest.approx([1, 0, 0], abs=0.03)


@pytest.mark.parametrize("suffix, tolerance", [("png", 0), ("jpg", 0.05)])
def test_exif_rotation_is_applied(tmp_path, suffix, tolerance):
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 255  # white left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    upright = read_image(saved(tmp_path / f"a.{suffix}", image, exif=exif))
    assert upright.shape == (3, 32, 16)
    assert upright[:, :15].min() >= 1 - tolerance
    assert upright[:, 17:].max() <= tolerance


def test_exif_rotation_of_16_bit_grey(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    image = read_image(saved(tmp_path / "a.png", np.array([[0, 65535]], np.uint16), exif=exif))
    assert image[0].tolist() == [[1], [0]]


def damaged(tmp_path, case):
    path = tmp_path / f"{case}.png"
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    if case == "folder":
        path.mkdir()
    elif case != "missing":
        path.write_bytes(
            {
                "text": b"this is not an image\n",
                "empty": b"",
                "cut": whole.getvalue()[:2000],
                "signature only": whole.getvalue()[:8],
                "cut in header": whole.getvalue()[:20],
            }[case]
        )
    return path


@pytest.mark.parametrize("case", ["text", "empty", "cut", "signature only", "cut in header", "missing", "folder"])
def test_what_is_no_image_is_named_in_one_line(tmp_path, case):
    path = damaged(tmp_path, case)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert one_line_about(path, error)


def test_cut_jpeg_is_an_error_not_half_an_image(tmp_path):
    path = saved(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert one_line_about(path, error)


@pytest.mark.parametrize("side", [9_000, 30_000])
def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    with pytest.raises(ImageError, match="pixels") as error:
        read_image(path)
    assert one_line_about(path, error)


def test_32_bit_samples_are_refused_rather_than_guessed(tmp_path):
    with pytest.raises(ImageError, match="32 bits"):
        read_image(saved(tmp_path / "a.tif", np.ones((2, 2), np.float32)))


def test_written_png_holds_the_image_rounded_to_8_bits(tmp_path):
    image = torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 1.7, -0.2, 1.0]).reshape(1, 1, 6).expand(3, 1, 6)
    write_image(tmp_path / "a.png", image)
    assert read_image(tmp_path / "a.png")[0, 0].mul(255).round().tolist() == [0, 0, 1, 255, 0, 255]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_suffix_chooses_the_format(tmp_path):
    write_image(tmp_path / "a.JPG", torch.rand(3, 8, 8))
    assert Image.open(tmp_path / "a.JPG").format == "JPEG"


@pytest.mark.parametrize("name", ["a.txt", "a", "missing/a.png"])
def test_what_cannot_be_written_is_named_in_one_line(tmp_path, name):
    with pytest.raises(ImageError) as error:
        write_image(tmp_path / name, torch.rand(3, 4, 4))
    assert one_line_about(tmp_path / name, error)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_takes_no_files(tmp_path):
    with pytest.raises(ImageError, match=r"/proc/a\.png"):  # not even root may write there
        write_image("/proc/a.png", torch.rand(3, 4, 4))


def test_name_taken_by_a_folder(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ImageError) as error:
        write_image(tmp_path / "a.png", torch.rand(3, 4, 4))
    assert one_line_about(tmp_path / "a.png", error)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    """The limit on a file's size stands in for a full disk: both fail in the middle of a write."""
    path = tmp_path / "a.png"
    path.write_text("old")
    code = f"import torch; from lora_comp.data import write_image; write_image({str(path)!r}, torch.rand(3, 99, 99))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert run.stderr.splitlines()[-1].startswith(f"lora_comp.errors.ImageError: cannot write {path}: ")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.png", "old")]
