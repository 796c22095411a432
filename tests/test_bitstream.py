"""What a user relies on: a file comes back as it was written, and a bad one is told apart, always as BitstreamError."""

import dataclasses
import doctest
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_comp import bitstream
from lora_comp.bitstream import METHODS, Header, read, section_count, write
from lora_comp.errors import BitstreamError

GOLDEN_HEADER = Header(
    height=512,
    width=768,
    codec="tic-s",
    quality=2,
    codec_hash=bytes.fromhex("c0dec0de"),
    symbols_crc=0x12345678,
    method="svd_lora",
    adapter_hash=bytes.fromhex("ada97e12"),
)
GOLDEN_SECTIONS = [b"\x0a\x0b", b"\x01\x02\x03", b""]
GOLDEN_FILE = bytes.fromhex(
    "4c435a 01 01 21"  # magic, version, flags: adapter hash present, quality 2 and method 1
    "ff03 ff05"  # 511 = 127 + 3 * 128, 767 = 127 + 5 * 128
    "05 7469632d73"  # "tic-s"
    "c0dec0de ada97e12 78563412"  # codec hash, adapter hash, symbols CRC
    "02 03 00"  # section lengths
    "0a0b 010203"  # z, y, and no deltas
    "b8ff4db6"
)  # CRC-32

PLAIN = Header(height=1, width=200, codec="tic", quality=0, codec_hash=b"abcd", symbols_crc=0)


def with_checksum(body: bytes) -> bytes:
    """A file that someone made on purpose: whatever it says, its checksum is right."""
    return body + zlib.crc32(body).to_bytes(4, "little")


@st.composite
def files(draw) -> tuple[Header, list[bytes]]:
    method = draw(st.sampled_from(METHODS))
    hashes = st.binary(min_size=4, max_size=4)
    header = Header(
        height=draw(st.integers(1, 2**14)),
        width=draw(st.integers(1, 2**14)),
        codec=draw(st.from_regex("[A-Za-z0-9]([A-Za-z0-9._-]{0,30}[A-Za-z0-9])?", fullmatch=True)),
        quality=draw(st.integers(0, 15)),
        codec_hash=draw(hashes),
        symbols_crc=draw(st.integers(0, 2**32 - 1)),
        method=method,
        adapter_hash=None if method == "none" else draw(st.none() | hashes),
        hints=draw(st.booleans()),
    )
    count = section_count(header)
    return header, draw(st.lists(st.binary(max_size=300), min_size=count, max_size=count))


@given(files())
def test_a_file_comes_back_as_it_was_written(file):
    header, sections = file
    assert read(write(header, sections)) == (header, sections)


def test_the_format_does_not_drift():
    assert write(GOLDEN_HEADER, GOLDEN_SECTIONS) == GOLDEN_FILE
    assert read(GOLDEN_FILE) == (GOLDEN_HEADER, GOLDEN_SECTIONS)
    assert METHODS == ("none", "svd_lora", "lora", "transtic", "duic", "alice", "slimmable")


def test_the_example_in_the_documentation_runs():
    results = doctest.testmod(bitstream)
    assert results.attempted > 0 and results.failed == 0


def test_overhead_stays_below_40_bytes():
    sections = [bytes(2_000), bytes(100_000), bytes(500)]  # more than any rate point needs for 768x512
    assert len(write(GOLDEN_HEADER, sections)) - sum(map(len, sections)) < 40


def test_every_single_bit_flip_is_told():
    for bit in range(8 * len(GOLDEN_FILE)):
        flipped = bytearray(GOLDEN_FILE)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            read(bytes(flipped))


def test_every_cut_is_told_as_a_cut():
    for length in range(1, len(GOLDEN_FILE)):
        with pytest.raises(BitstreamError, match="is cut short"):
            read(GOLDEN_FILE[:length])


@given(st.binary(min_size=1, max_size=20))
def test_appended_bytes_are_told(extra):
    with pytest.raises(BitstreamError, match="has extra bytes"):
        read(GOLDEN_FILE + extra)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"hello", b"LC\x00", b"\x00" * 100])
def test_another_kind_of_file_is_told(data):
    with pytest.raises(BitstreamError, match="not a lora_comp file"):
        read(data)


def test_another_version_is_named():
    with pytest.raises(BitstreamError, match="version 7, this lora_comp reads version 1"):
        read(with_checksum(GOLDEN_FILE[:3] + b"\x07" + GOLDEN_FILE[4:-4]))


def test_an_altered_section_is_told_as_altered():
    altered = bytearray(GOLDEN_FILE)
    altered[-6] ^= 255
    with pytest.raises(BitstreamError, match="is altered"):
        read(bytes(altered))


def test_pixels_are_bounded():
    header = dataclasses.replace(PLAIN, height=100, width=100)
    data = write(header, [b"", b""])
    assert read(data, max_pixels=100 * 100)[0] == header
    with pytest.raises(BitstreamError, match="100x100 pixels, more than the 9999"):
        read(data, max_pixels=100 * 100 - 1)
    largest = write(dataclasses.replace(PLAIN, height=2**32, width=2**32), [b"", b""])
    with pytest.raises(BitstreamError, match="more than the 268435456 allowed"):
        read(largest)


@pytest.mark.parametrize(("height", "width"), [(1, 2**22), (2**22, 64), (2**14, 2**14)])
def test_a_thin_image_counts_as_it_is_coded(height, width):
    """1x2^28 pixels would be padded to 64x2^28."""
    header = dataclasses.replace(PLAIN, height=height, width=width)
    assert read(write(header, [b"", b""]))[0] == header
    longer = dataclasses.replace(header, **({"height": height + 1} if height > width else {"width": width + 1}))
    with pytest.raises(BitstreamError, match="a side counts as 64 at least"):
        read(write(longer, [b"", b""]))


@pytest.mark.parametrize(
    "body, message",
    [
        (b"LCZ\x01\x04\x00\x00\x00\x03tic" + b"12345678" + b"\x00\x00", "flags 0x04"),
        (b"LCZ\x01\x00\x0f\x00\x00\x03tic" + b"12345678" + b"\x00\x00\x00", "method 15"),
        (b"LCZ\x01\x00\x00\x80\x00\x00\x03tic" + b"12345678" + b"\x00\x00", "shortest form"),
        (b"LCZ\x01\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x03tic" + b"12345678" + b"\x00\x00", "five bytes"),
        (b"LCZ\x01\x00\x00\xff\xff\xff\xff\x7f\x00\x03tic" + b"12345678" + b"\x00\x00", "height and width"),
        (b"LCZ\x01\x01\x00\x00\x00\x03tic" + b"123456789abc" + b"\x00\x00", "no adapter hash"),
        (b"LCZ\x01\x00\x00\x00\x00\x05../up" + b"12345678" + b"\x00\x00", "no codec name"),
        (b"LCZ\x01\x00\x00\x00\x00\x02\xc3\xa9" + b"12345678" + b"\x00\x00", "no codec name"),
        (b"LCZ\x01\x00\x00\x00\x00\x00" + b"12345678" + b"\x00\x00", "no codec name"),
        (b"LCZ\x01\x00\x00\x00\x00\x03tic" + b"12345678" + b"\xff\xff\xff\xff\x7f\x00", "declares 34359738397"),
    ],
)
def test_a_forged_header_with_a_right_checksum_is_told(body, message):
    with pytest.raises(BitstreamError, match=message):
        read(with_checksum(body))


@given(st.data())
def test_a_forged_file_is_read_or_refused_and_has_one_encoding(data):
    header, sections = data.draw(files())
    body = bytearray(write(header, sections)[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(3, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if len(body) < 4:
            return
    forged = with_checksum(bytes(body))
    try:
        found, parts = read(forged)
    except BitstreamError:
        return
    assert write(found, parts) == forged


@given(st.binary(max_size=64))
def test_random_bytes_behind_a_good_start_are_refused_or_read(tail):
    data = b"LCZ\x01" + tail
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
        {"method": "unheard-of"},
        {"codec_hash": b"123"},
        {"adapter_hash": b"1234"},
        {"method": "lora", "adapter_hash": b""},
        {"symbols_crc": 2**32},
    ],
)
def test_the_writer_refuses_what_the_reader_would(change):
    header = dataclasses.replace(PLAIN, **change)
    with pytest.raises(ValueError):
        write(header, [b""] * section_count(header))


def test_the_writer_refuses_a_wrong_number_of_sections():
    with pytest.raises(ValueError, match="2 sections, but 3 were given"):
        write(PLAIN, [b"z", b"y", b"deltas"])
