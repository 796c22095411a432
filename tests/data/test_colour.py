"""Colours of ICC profiles become sRGB; those of sRGB stay as they are."""

import io
import zlib

import numpy as np
import pytest
from image_files import ADOBE_RGB, DISPLAY_P3, SRGB, chunk, gamma_curve, png, profile, srgb_curve, tiff
from PIL import Image, ImageCms

from lora_comp.data.images import read_image, to_image

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
LINEAR = {
    "p3": lambda x: np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4),
    "adobe": lambda x: x ** (563 / 256),
}
WIDE = {"p3": profile(DISPLAY_P3, srgb_curve()), "adobe": profile(ADOBE_RGB, gamma_curve(563 / 256))}


def saved(path, image, **options):
    image.save(path, **options)
    return path


def shown(path) -> np.ndarray:
    return read_image(path).numpy().transpose(1, 2, 0)


def in_srgb(colours: np.ndarray, kind: str) -> np.ndarray:
    """What the equations of the profile give: linear light, XYZ, linear sRGB, the curve of sRGB."""
    columns = np.array({"p3": DISPLAY_P3, "adobe": ADOBE_RGB}[kind]).T
    light = LINEAR[kind](colours) @ columns.T @ np.linalg.inv(np.array(SRGB).T).T
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def suffixes(*names):
    return pytest.mark.parametrize("suffix", names)


@suffixes("png", "tif", "webp")
@pytest.mark.parametrize("kind", WIDE)
def test_wide_profiles_are_converted(tmp_path, kind, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(COLOURS), icc_profile=WIDE[kind], **options)
    expected = in_srgb(COLOURS / 255, kind)
    assert np.abs(shown(path) - expected).max() < 2.1 / 255
    assert np.abs(COLOURS / 255 - expected).max() > 0.05


def test_a_jpeg_is_converted(tmp_path):
    image = Image.new("RGB", (16, 16), (220, 60, 40))
    path = saved(tmp_path / "a.jpg", image, quality=95, icc_profile=WIDE["p3"])
    assert shown(path)[8, 8] == pytest.approx(in_srgb(np.array([220, 60, 40]) / 255, "p3"), abs=0.02)


@pytest.mark.parametrize(
    "srgb",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        profile(SRGB, srgb_curve()),
        profile(SRGB, srgb_curve(256)),
        profile(((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)), srgb_curve()),
    ],
    ids=["LittleCMS", "1024 steps", "256 steps", "HP"],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_srgb_changes_no_value(tmp_path, srgb, mode):
    image = Image.fromarray(COLOURS).convert(mode)
    plain, tagged = (
        saved(tmp_path / f"{i}.png", image, **options) for i, options in enumerate([{}, {"icc_profile": srgb}])
    )
    assert np.array_equal(shown(plain), shown(tagged))


@pytest.mark.parametrize(
    "broken",
    [b"no profile", bytes(600), profile(None, gamma_curve(1.0)), WIDE["p3"][:300], WIDE["p3"][:200] + bytes(99)],
)
def test_a_profile_that_cannot_be_used_is_ignored(tmp_path, broken):
    path = saved(tmp_path / "a.png", Image.fromarray(COLOURS), icc_profile=broken)
    assert np.array_equal(shown(path), COLOURS.astype(np.float32) / 255)


def test_alpha_is_no_colour(tmp_path):
    alpha = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32, 1)
    image = Image.fromarray(np.concatenate([COLOURS, alpha], 2))
    path = saved(tmp_path / "a.png", image, icc_profile=WIDE["p3"])
    opaque = in_srgb(COLOURS / 255, "p3")
    assert np.abs(shown(path) - (opaque * (alpha / 255) + 1 - alpha / 255)).max() < 2.1 / 255


def test_palettes_are_converted(tmp_path):
    image = Image.fromarray(COLOURS).quantize(32)
    path = saved(tmp_path / "a.png", image, icc_profile=WIDE["p3"])
    assert np.abs(shown(path) - in_srgb(np.asarray(image.convert("RGB")) / 255, "p3")).max() < 2.1 / 255


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_is_converted(tmp_path, bits):
    values = np.linspace(0, 2**bits - 1, 300).reshape(10, 30).astype(f"u{bits // 8}")
    image = Image.fromarray(values)
    path = saved(tmp_path / "a.png", image, icc_profile=profile(None, gamma_curve(1.0)))
    linear = values[..., None].repeat(3, 2) / (2**bits - 1)
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(shown(path) - expected)[1:].max() < 0.03  # steps of 1/255 in linear light are coarse in the dark


def test_16_bits_of_colour_are_converted(tmp_path):
    values = np.linspace(0, 65535, 900).reshape(15, 20, 3).astype(np.int64)
    data = tiff(values, 16, 2)
    with Image.open(io.BytesIO(data)) as image:
        image.save(tmp_path / "a.tif", icc_profile=WIDE["p3"])
    (tmp_path / "b.tif").write_bytes(data)
    assert np.abs(shown(tmp_path / "a.tif") - in_srgb(values / 65535, "p3")).max() < 3 / 255
    assert np.abs(shown(tmp_path / "b.tif") - values / 65535).max() < 1e-6


@pytest.mark.parametrize("text", [b"", b"x" * (2 << 20)], ids=["", "and a long text"])
def test_a_profile_of_any_length_in_a_png(tmp_path, text):
    long = WIDE["p3"] + bytes(2 << 20)
    before = chunk(b"iCCP", b"a\0\0" + zlib.compress(long)) + chunk(b"zTXt", b"a\0\0" + zlib.compress(text))
    (tmp_path / "a.png").write_bytes(png(COLOURS.astype(int), 8, 2, before))
    assert np.abs(shown(tmp_path / "a.png") - in_srgb(COLOURS / 255, "p3")).max() < 2.1 / 255


def test_lab_becomes_rgb(tmp_path):
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = Image.new("RGB", (8, 8), (200, 120, 90))
    path = saved(tmp_path / "a.tif", lab.apply(image))
    assert shown(path)[0, 0] == pytest.approx(np.array([200, 120, 90]) / 255, abs=0.01)


def test_an_opened_image_is_converted_as_its_file_is(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(COLOURS), icc_profile=WIDE["adobe"])
    with Image.open(path) as image:
        assert to_image(image).equal(read_image(path))


@pytest.mark.data
def test_a_file_of_display_p3(shared):
    path = shared / "cases" / "images" / "icc_p3.png"
    if not path.exists():
        pytest.skip(f"no {path}")
    with Image.open(path) as image:
        stored = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        expected = ImageCms.profileToProfile(image, stored, ImageCms.createProfile("sRGB"))
    assert np.array_equal(shown(path), np.asarray(expected).astype(np.float32) / 255)
