"""The file format: reading inverts writing, the bytes never change, and invalid files raise BitstreamError."""

import dataclasses
import doctest
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_comp import bitstream
from lora_comp.bitstream import CODECS, METHODS, Header, Sections, read, write
from lora_comp.errors import BitstreamError

GOLDEN_HEADER = Header(
    height=512,
    width=768,
    codec="tic-s",
    quality=2.5,
    codec_hash=bytes.fromhex("c0dec0de"),
    symbols_crc=0x12345678,
    method="svd_lora",
    adapter_hash=bytes.fromhex("ada97e12"),
)
GOLDEN_SECTIONS = Sections([b"\x0a\x0b", b"\x01\x02\x03"], payload=b"")
GOLDEN_FILE = bytes.fromhex(
    "4c435a 02 05 28"  # magic, version, flags: adapter hash and payload, quality 40 / 16
    "01 01"  # the second codec, the second method
    "ff03 ff05"  # 511 = 127 + 3 * 128, 767 = 127 + 5 * 128
    "c0dec0de ada97e12 78563412"  # codec hash, adapter hash, symbols CRC
    "02 02 03 00"  # two sections of latents; section lengths
    "0a0b 010203"  # z, y, and an empty payload
    "a36682aa"
)  # CRC-32

PLAIN = Header(height=1, width=200, codec="tic", quality=0, codec_hash=b"abcd", symbols_crc=0)
TWO = Sections([b"", b""])
NAMES = st.from_regex("[A-Za-z0-9]([A-Za-z0-9._-]{0,30}[A-Za-z0-9])?", fullmatch=True)


def with_checksum(body: bytes) -> bytes:
    """A forged file: its checksum is valid."""
    return body + zlib.crc32(body).to_bytes(4, "little")


@st.composite
def files(draw) -> tuple[Header, Sections]:
    method = draw(st.sampled_from(METHODS) | NAMES)
    hashes = st.binary(min_size=4, max_size=4)
    sections = st.binary(max_size=300)
    plain = method == "none"
    header = Header(
        height=draw(st.integers(1, 2**14)),
        width=draw(st.integers(1, 2**14)),
        codec=draw(st.sampled_from(CODECS) | NAMES),
        quality=draw(st.integers(0, 255)) / 16,
        codec_hash=draw(hashes),
        symbols_crc=draw(st.integers(0, 2**32 - 1)),
        method=method,
        adapter_hash=None if plain else draw(st.none() | hashes),
        features=draw(st.none() | NAMES),
        base=None if plain else draw(st.none() | st.tuples(st.sampled_from(METHODS[1:]), hashes)),
    )
    latents = draw(st.lists(sections, min_size=1, max_size=4))
    return header, Sections(latents, None if plain else draw(st.none() | sections), draw(sections))


@given(files())
def test_read_inverts_write(file):
    header, sections = file
    assert read(write(header, sections)) == (header, sections)


def test_the_format_matches_the_golden_file():
    assert write(GOLDEN_HEADER, GOLDEN_SECTIONS) == GOLDEN_FILE
    assert read(GOLDEN_FILE) == (GOLDEN_HEADER, GOLDEN_SECTIONS)
    assert METHODS[:3] == ("none", "svd_lora", "lora") and CODECS[:3] == ("tic", "tic-s", "tic-v")


def test_the_doctest_passes():
    results = doctest.testmod(bitstream)
    assert results.attempted > 0 and results.failed == 0


def test_the_overhead_is_below_40_bytes():
    sections = Sections([bytes(2_000), bytes(100_000)], bytes(500))  # more than any rate point needs for 512x768
    assert len(write(GOLDEN_HEADER, sections)) - sum(map(len, sections.all())) < 40


def test_every_bit_flip_raises():
    for bit in range(8 * len(GOLDEN_FILE)):
        flipped = bytearray(GOLDEN_FILE)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            read(bytes(flipped))


def test_every_truncation_raises_as_such():
    for length in range(1, len(GOLDEN_FILE)):
        with pytest.raises(BitstreamError, match="is truncated"):
            read(GOLDEN_FILE[:length])


@given(st.binary(min_size=1, max_size=20))
def test_appended_bytes_raise(extra):
    with pytest.raises(BitstreamError, match="is too long"):
        read(GOLDEN_FILE + extra)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"hello", b"LC\x00", b"\x00" * 100])
def test_other_kinds_of_file_raise(data):
    with pytest.raises(BitstreamError, match="not a lora_comp file"):
        read(data)


@pytest.mark.parametrize("version", [1, 7])
def test_other_versions_raise_with_their_number(version):
    with pytest.raises(BitstreamError, match=f"version {version}, this lora_comp reads version 2"):
        read(with_checksum(GOLDEN_FILE[:3] + bytes([version]) + GOLDEN_FILE[4:-4]))


def test_a_corrupt_section_raises():
    corrupt = bytearray(GOLDEN_FILE)
    corrupt[-6] ^= 255
    with pytest.raises(BitstreamError, match="is corrupt"):
        read(bytes(corrupt))


def test_max_pixels_limits_the_image_size():
    header = dataclasses.replace(PLAIN, height=100, width=100)
    data = write(header, TWO)
    assert read(data, max_pixels=100 * 100)[0] == header
    with pytest.raises(BitstreamError, match="100x100 pixels, more than the 9999"):
        read(data, max_pixels=100 * 100 - 1)
    largest = write(dataclasses.replace(PLAIN, height=2**32, width=2**32), TWO)
    with pytest.raises(BitstreamError, match="more than the 268435456 allowed"):
        read(largest)


@pytest.mark.parametrize(("height", "width"), [(1, 2**22), (2**22, 64), (2**14, 2**14)])
def test_thin_images_count_with_their_padding(height, width):
    """1x2^28 pixels would be padded to 64x2^28."""
    header = dataclasses.replace(PLAIN, height=height, width=width)
    assert read(write(header, TWO))[0] == header
    longer = dataclasses.replace(header, **({"height": height + 1} if height > width else {"width": width + 1}))
    with pytest.raises(BitstreamError, match="sides below 64 count as 64"):
        read(write(longer, TWO))


START, END = b"LCZ\x02", b"12345678" + b"\x02\x00\x00"


@pytest.mark.parametrize(
    "body, message",
    [
        (b"\x20\x00\x00\x00\x00\x00" + END, "flags 0x20"),
        (b"\x00\x00\x00\x7f\x00\x00" + END, "of code 127"),
        (b"\x00\x00\x7f\x00\x00\x00" + END, "of code 127"),
        (b"\x00\x00\x83tic\x00\x00\x00" + END, "tic is spelt out, but has a code"),
        (b"\x00\x00\x00\x00\x80\x00\x00" + END, "shortest form"),
        (b"\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00" + END, "five bytes"),
        (b"\x00\x00\x00\x00\xff\xff\xff\xff\x7f\x00" + END, "height and width"),
        (b"\x01\x00\x00\x00\x00\x00abcd" + END, "neither adapter hash nor payload"),
        (b"\x04\x00\x00\x00\x00\x00" + END + b"\x00", "neither adapter hash nor payload"),
        (b"\x02\x00\x00\x00\x00\x00" + END + b"\x00", "its hints are empty"),
        (b"\x00\x00\x00\x00\x00\x0012345678\x00", "1 to 255 sections of latents, not 0"),
        (b"\x08\x00\x00\x00\x00\x00\x00" + END, "of code 0"),
        (b"\x08\x00\x00\x00\x80\x00\x00" + END, "not a layer name"),
        (b"\x10\x00\x00\x00\x04\x00\x00" + END[:4] + END, "the method 'none' has no base"),
        (b"\x10\x00\x00\x02\x00\x00\x00" + END[:4] + END, "the method 'none' has no base"),
        (b"\x00\x00\x85../up\x00\x00\x00" + END, "not a codec name"),
        (b"\x00\x00\x82\xc3\xa9\x00\x00\x00" + END, "not a codec name"),
        (b"\x00\x00\x00\x80\x00\x00" + END, "not a method name"),
        (b"\x00\x00\x00\x00\x00\x0012345678\x01\xff\xff\xff\xff\x7f", "of the 343597383"),
    ],
)
def test_invalid_headers_with_a_valid_checksum_raise(body, message):
    with pytest.raises(BitstreamError, match=message):
        read(with_checksum(START + body))


@given(st.data())
def test_forged_files_raise_or_have_one_encoding(data):
    header, sections = data.draw(files())
    body = bytearray(write(header, sections)[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(3, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if len(body) < 4:
            return
    forged = with_checksum(bytes(body))
    try:
        result = read(forged)
    except BitstreamError:
        return
    assert write(*result) == forged


@given(st.binary(max_size=64))
def test_random_bytes_after_the_magic_raise_or_have_one_encoding(tail):
    data = b"LCZ\x02" + tail
    try:
        header, sections = read(data)
    except BitstreamError as error:
        assert "\n" not in str(error)
    else:
        assert write(header, sections) == data


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"width": 2**32 + 1},
        {"codec": ""},
        {"codec": "a/b"},
        {"codec": "x" * 33},
        {"quality": 16},
        {"quality": -1},
        {"quality": 1.1},
        {"method": ""},
        {"features": "a b"},
        {"codec_hash": b"123"},
        {"adapter_hash": b"1234"},
        {"method": "lora", "adapter_hash": b""},
        {"base": ("alice", b"1234")},
        {"method": "lora", "base": ("none", b"1234")},
        {"method": "lora", "base": ("a b", b"1234")},
        {"method": "lora", "base": ("alice", b"123")},
        {"symbols_crc": 2**32},
    ],
)
def test_writing_an_invalid_header_raises(change):
    header = dataclasses.replace(PLAIN, **change)
    with pytest.raises(ValueError):
        write(header, TWO)


@pytest.mark.parametrize("sections", [Sections([]), Sections([b""] * 256), Sections([b""], payload=b"")])
def test_writing_invalid_sections_raises(sections):
    with pytest.raises(ValueError):
        write(PLAIN, sections)


def test_registered_names_take_one_byte():
    short, long = (len(write(dataclasses.replace(PLAIN, codec=name), TWO)) for name in ("tic-v", "tic-x"))
    assert long - short == len("tic-x")
