"""Samples of every depth, with what is black, white and transparent in them: right, or refused for the reason."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from image_files import chunk, packed, png, tiff
from PIL import Image

from lora_comp.data import read_image
from lora_comp.errors import ImageError

HEIGHT, WIDTH = 5, 37
RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
COLOUR = np.concatenate([RAMP, RAMP[::-1], RAMP[:, ::-1]], 2)
ALPHA = np.linspace(0, 1, WIDTH).reshape(1, WIDTH, 1).repeat(HEIGHT, 0)


def steps(values: np.ndarray, maximum: int) -> np.ndarray:
    return np.rint(values * maximum).astype(np.int64)


def grey(values: np.ndarray) -> np.ndarray:
    return values.repeat(3, 2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colour * alpha + 1 - alpha


@pytest.fixture
def reads(tmp_path):
    """Assert that a file holds this image (H, W, 3)."""

    def reads(data: bytes, expected: np.ndarray, name: str = "a", within: float = 2e-6):
        (tmp_path / name).write_bytes(data)
        image = read_image(tmp_path / name).numpy().transpose(1, 2, 0)
        assert image.shape == expected.shape and image.dtype == np.float32
        assert np.abs(image - expected).max() <= within

    return reads


@pytest.fixture
def refused(tmp_path):
    """The reason for which a file is refused, in one line that names it."""

    def refused(data: bytes, name: str = "a") -> str:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError) as error:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    return refused


def written(samples: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, samples, metadata=None, **options)
    return file.getvalue()


# TIFF


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8, 10, 12, 14, 16])
def test_grey_tiffs_of_any_depth(reads, bits, photometric, order):
    if (bits, order) == (16, 2):
        pytest.skip("bits of a byte are reversed in files of fewer bits only")
    values = steps(RAMP, 2**bits - 1)
    shown = values / (2**bits - 1)
    reads(tiff(values, bits, photometric, order), grey(shown if photometric else 1 - shown))


@pytest.mark.parametrize("bits", [2, 4, 8, 10, 12, 14, 16])
def test_colour_tiffs_of_any_depth(reads, bits):
    values = steps(COLOUR, 2**bits - 1)
    reads(tiff(values, bits, 2), values / (2**bits - 1))


KINDS = {  # photometric, extra samples, and what is shown of grey or colour and alpha
    "white": ("miniswhite", [], lambda c, a: 1 - c),
    "grey+alpha": ("minisblack", ["unassalpha"], on_white),
    "grey+premultiplied": ("minisblack", ["assocalpha"], lambda c, a: c * a + 1 - a),
    "white+alpha": ("miniswhite", ["unassalpha"], lambda c, a: on_white(1 - c, a)),
    "rgb": ("rgb", [], lambda c, a: c),
    "rgb+alpha": ("rgb", ["unassalpha"], on_white),
    "rgb+premultiplied": ("rgb", ["assocalpha"], lambda c, a: c * a + 1 - a),
    "rgb+other": ("rgb", ["unspecified"], lambda c, a: c),
    "rgb+other+alpha": ("rgb", ["unspecified", "unassalpha"], on_white),
    "cmyk": ("separated", [], lambda c, a: 1 - c),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"planarconfig": "separate"},
        {"compression": "deflate", "predictor": True},
        {"tile": (16, 16)},
        {"rowsperstrip": 2},
        {"bigtiff": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_tags_of_tiffs_are_obeyed(reads, kind, bits, options):
    photometric, extra, shown = KINDS[kind]
    maximum = 2**bits - 1
    alpha = steps(ALPHA, maximum) if extra else None
    colour = RAMP if photometric.startswith("minis") else COLOUR
    if "premultiplied" in kind:
        values = steps(colour * ALPHA, maximum)
        expected = np.minimum(values / maximum + 1 - alpha / maximum, 1)
    else:
        values = steps(colour, maximum)
        expected = shown(values / maximum, alpha / maximum if extra else None)
    if photometric == "separated":
        values = np.concatenate([values, 0 * values[..., :1]], 2)
    values = np.concatenate([values, *[alpha] * len(extra)], 2).astype(f"u{bits // 8}")
    if options.get("planarconfig") and values.shape[2] > 1:
        values = values.transpose(2, 0, 1)
    elif values.shape[2] == 1:
        values, options = values[..., 0], {key: value for key, value in options.items() if key != "planarconfig"}
    else:
        options = {"planarconfig": "contig"} | options
    data = written(values, photometric=photometric, extrasamples=extra or None, **options)
    reads(data, grey(expected) if expected.shape[2] == 1 else expected)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_tiffs_are_turned_as_they_say(reads, bits, orientation, kind):
    maximum = 2**bits - 1
    samples = {"RGB": COLOUR, "RGBA": np.concatenate([COLOUR, ALPHA], 2), "L": RAMP}[kind]
    values = steps(samples, maximum)
    shown = values / maximum
    shown = {"RGB": lambda: shown, "RGBA": lambda: on_white(shown[..., :3], shown[..., 3:]), "L": lambda: grey(shown)}[
        kind
    ]()
    turned = [
        shown,
        shown[:, ::-1],
        shown[::-1, ::-1],
        shown[::-1],
        shown.swapaxes(0, 1),
        np.rot90(shown, -1),
        np.rot90(shown, 2).swapaxes(0, 1),
        np.rot90(shown),
    ][orientation - 1]
    extra = {338: 2} if kind == "RGBA" else {}
    reads(tiff(values, bits, 1 if kind == "L" else 2, tags={274: orientation, **extra}), turned)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "zstd"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_16_bits_that_pillow_compresses(reads, compression, white_is_zero):
    values = steps(RAMP, 65535)
    file = io.BytesIO()
    options = {262: 0} if white_is_zero else {}
    image = Image.fromarray(values[..., 0].astype(np.uint16))
    image.save(file, "TIFF", compression=compression, tiffinfo=options)
    shown = values / 65535
    reads(file.getvalue(), grey(1 - shown if white_is_zero else shown))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits"])
def test_modes_of_pillow_survive_a_tiff(reads, mode, compression):
    image = Image.fromarray(steps(COLOUR, 255).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF", compression=compression)
    reads(file.getvalue(), np.asarray(image.convert("RGB")) / 255, within=0.02 if mode == "YCbCr" else 2e-6)


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("photometric, samples", [("minisblack", RAMP[..., 0]), ("rgb", COLOUR)])
def test_samples_without_an_agreed_range_are_named(refused, kind, photometric, samples):
    line = refused(written((samples * 100).astype(kind), photometric=photometric))
    assert f"samples of {8 * np.dtype(kind).itemsize} bits have no agreed range" in line
    assert ("signed" in line, "floating" in line) == (kind.startswith("int"), kind.startswith("float")) or "un" in line


def test_tiffs_that_are_no_image_are_named(refused):
    five = np.zeros((9, 9, 5), np.uint8)
    assert "5 channels" in refused(
        written(five, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"] * 4)
    )
    assert "thumbnail" in refused(written(five[..., :3], photometric="rgb", subfiletype=1))
    volume = np.zeros((16, 16, 16), np.uint8)
    assert "16 slices" in refused(written(volume, photometric="minisblack", volumetric=True, tile=(16, 16, 16)))
    assert "compression" in refused(tiff(steps(RAMP, 255), 8, 1, tags={259: 50001}))
    assert "pixels" in refused(tiff(steps(RAMP, 255), 8, 1, tags={256: 60000, 257: 60000}))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_cut_tiff_is_refused(refused, bits):
    whole = written(steps(COLOUR, 255).astype(np.uint8), photometric="rgb") if bits == 8 else None
    data = whole or tiff(steps(COLOUR, 2**bits - 1), bits, 2)
    for length in (9, len(data) // 2, len(data) - 20):
        refused(data[:length])


# PNG


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_pngs_and_their_transparent_value(reads, bits, transparent):
    values = steps(RAMP, 2**bits - 1)
    key = int(values[2, 3, 0])
    shown = values / (2**bits - 1)
    if transparent:
        shown = np.where(values == key, 1, shown)
    reads(png(values, bits, 0, chunk(b"tRNS", struct.pack(">H", key)) if transparent else b""), grey(shown))


@pytest.mark.parametrize("alphas", [b"", b"\xff\0", b"\x80\x40\0"], ids=["opaque", "one", "several"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_pngs_and_their_transparent_colours(reads, bits, alphas):
    palette = np.random.default_rng(0).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    alphas = alphas[: 2**bits]
    alpha = np.frombuffer(alphas.ljust(2**bits, b"\xff"), np.uint8) / 255
    values = steps(RAMP, 2**bits - 1)[..., 0]
    before = chunk(b"PLTE", palette.tobytes()) + (chunk(b"tRNS", alphas) if alphas else b"")
    reads(png(values[..., None], bits, 3, before), on_white(palette[values] / 255, alpha[values][..., None]))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["rgb", "rgb with a transparent colour", "rgba", "grey+alpha"])
def test_pngs_of_several_samples(reads, bits, kind):
    maximum = 2**bits - 1
    colour, alpha = steps(RAMP if kind == "grey+alpha" else COLOUR, maximum), steps(ALPHA, maximum)
    shown, before = colour / maximum, b""
    if kind == "rgb with a transparent colour":
        key = colour[3, 3]
        before = chunk(b"tRNS", key.astype(">u2").tobytes())
        shown = np.where((colour == key).all(2, keepdims=True), 1, shown)
    elif kind != "rgb":
        shown = on_white(shown, alpha / maximum)
        colour = np.concatenate([colour, alpha], 2)
    data = png(colour, bits, {"rgba": 6, "grey+alpha": 4}.get(kind, 2), before)
    reads(data, grey(shown) if shown.shape[2] == 1 else shown)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("colour, bits", [(2, 8), (2, 16), (6, 16), (0, 16), (4, 16)])
def test_pngs_are_turned_as_they_say(reads, colour, bits, where):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = steps({0: RAMP, 4: np.concatenate([RAMP, ALPHA], 2), 2: COLOUR}.get(colour, COLOUR), 2**bits - 1)
    if colour == 6:
        values = np.concatenate([values, steps(ALPHA, 65535)], 2)
    shown = values / (2**bits - 1)
    if colour in (4, 6):
        shown = on_white(shown[..., :-1], shown[..., -1:])
    data = png(values, bits, colour, **{where: chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))})
    reads(data, np.rot90(grey(shown) if shown.shape[2] == 1 else shown, -1))


TEXTS = {
    b"tEXt": b"Comment\0",
    b"zTXt": b"Comment\0\0",
    b"iTXt": b"Comment\0\1\0\0\0",
}


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("bits", [8, 16])
def test_text_of_any_length_is_skipped(reads, kind, where, bits):
    exif = Image.Exif()
    exif[0x0112] = 3
    long = b"x" * (2 << 20)
    texts = chunk(kind, TEXTS[kind] + (long if kind == b"tEXt" else zlib.compress(long))) * (
        40 if kind == b"tEXt" else 2
    )
    turned = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    values = steps(COLOUR, 2**bits - 1)
    reads(png(values, bits, 2, **{where: turned + texts}), values[::-1, ::-1] / (2**bits - 1))


def test_a_cut_png_of_16_bits_is_refused(refused):
    data = png(steps(COLOUR, 65535), 16, 2)
    for length in (30, 60, len(data) // 2, len(data) - 40):
        refused(data[:length])


# other formats


@pytest.mark.parametrize("maximum", [1, 15, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
def test_pnms_of_any_maximum(reads, magic, maximum):
    values = steps(COLOUR if magic in ("P3", "P6") else RAMP, maximum)
    plain = b" ".join(b"%d" % value for value in values.ravel())
    binary = values.astype(">u2" if maximum > 255 else "u1").tobytes()
    data = f"{magic}\n# a comment\n{WIDTH} {HEIGHT}\n{maximum}\n".encode() + (plain if magic < "P4" else binary)
    shown = values / maximum
    reads(data, grey(shown) if shown.shape[2] == 1 else shown, within=2e-3 if magic < "P4" else 2e-6)


def test_bitmaps(reads):
    values = RAMP < 0.4
    head = f"\n{WIDTH} {HEIGHT}\n".encode()
    reads(b"P4" + head + b"".join(packed(values.astype(int), 1)), grey(1 - values * 1.0))
    reads(b"P1" + head + b" ".join(b"%d" % value for value in values.ravel()), grey(1 - values * 1.0))


def test_bad_pnms_are_refused(refused):
    head = f"P5 {WIDTH} {HEIGHT} 1000\n".encode()
    assert "truncated" in refused(head + bytes(2 * WIDTH * HEIGHT - 1))
    assert "maximum of 1000" in refused(head + b"\x7f" * (2 * WIDTH * HEIGHT))
    assert "floating-point" in refused(f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + bytes(4 * WIDTH * HEIGHT))


def _words(value) -> str:
    """A name for a test that is the same in every process."""
    return value if isinstance(value, str) else "-".join(value)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("WEBP", {"lossless": True, "exact": True}),
        ("WEBP", {"lossless": True, "exact": True, "save_all": True, "append_images": [Image.new("RGBA", (37, 5))]}),
        ("PNG", {"save_all": True, "append_images": [Image.new("RGBA", (37, 5))]}),
        ("TGA", {}),
        ("JPEG2000", {}),
        ("ICO", {"bitmap_format": "png", "sizes": [(37, 5)]}),
        ("QOI", {}),
    ],
    ids=_words,
)
def test_transparency_of_other_formats(reads, kind, options):
    values = steps(np.concatenate([COLOUR, ALPHA], 2), 255)
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, kind, **options)
    reads(file.getvalue(), on_white(values[..., :3] / 255, values[..., 3:] / 255))


@pytest.mark.parametrize("options", [{}, {"save_all": True, "append_images": [Image.new("P", (37, 5))]}], ids=_words)
def test_the_transparent_colour_of_a_gif(reads, options):
    image = Image.fromarray(steps(COLOUR, 255).astype(np.uint8)).quantize(16)
    file = io.BytesIO()
    image.save(file, "GIF", transparency=3, **options)
    shown = np.where(np.asarray(image)[..., None] == 3, 1, np.asarray(image.convert("RGB")) / 255)
    reads(file.getvalue(), shown)


# A codestream of 4 x 2 pixels: 0 1 2 3, 12 13 14 15, of 4 bits each, lossless.
JPEG2000_OF_4_BITS = bytes.fromhex(
    "ff4fff510029000000000004000000020000000000000000000000040000000200000000000000000001030101ff52000c00"
    "000001000004040001ff5c00044020ff90000a0000000000160001ff93df205007a07c9b07ffd9"
)


def test_white_is_white_in_a_jpeg2000_of_few_bits(reads):
    values = np.array([[0, 1, 2, 3], [12, 13, 14, 15]])[..., None]
    reads(JPEG2000_OF_4_BITS, grey(values / 15))


def test_a_jpeg2000_of_16_bits(reads, refused):
    values = steps(RAMP, 65535)
    file = io.BytesIO()
    Image.fromarray(values[..., 0].astype(np.uint16)).save(file, "JPEG2000")
    reads(file.getvalue(), grey(values / 65535))
    deep = bytearray(JPEG2000_OF_4_BITS)
    deep[42] = 0x83
    assert "signed samples of 4 bits" in refused(bytes(deep))
