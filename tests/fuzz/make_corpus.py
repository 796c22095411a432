"""Generate the seed corpus. Run this after every change of the format or of the weights in the package.

python tests/fuzz/make_corpus.py
"""

import random
import shutil

import numpy as np
import torch
from mutations import NAMES, split, varint
from targets import CORPUS, DELTAS

import lora_comp as lc
from lora_comp import api, bitstream
from lora_comp.entropy import hyperprior, updates
from lora_comp.entropy.prior import quantise
from lora_comp.methods import load_method
from lora_comp.methods.svd_lora import AdaptedLowRank

IMAGES = (((1, 1), 1), ((16, 16), 2), ((64, 64), 3), ((100, 70), 4.5), ((70, 100), 6))  # height and width, quality


def shake(adapted: AdaptedLowRank, seed: int) -> None:
    """Add a few steps to all transmitted values."""
    k = np.random.default_rng(seed).integers(-1, 2, adapted.symbols().shape)
    adapted.place(k.astype(np.int32), adapted.exponent)


def plain(codec, x: torch.Tensor, size: tuple[int, int]) -> bytes:
    return api.write(codec, codec.latents(x), size)[0]


@torch.no_grad()
def valid_files() -> dict[str, bytes]:
    whole = lc.load_data("scenes", limit=1, size=256)[0].image
    files = {}
    for (height, width), quality in IMAGES:
        codec = lc.load_codec("tic-v", quality)
        x = api.pad(whole[None, :, 80 : 80 + height, 90 : 90 + width], codec.stride)
        files[f"none-{height}x{width}-q{quality:g}"] = plain(codec, x, (height, width))
        for name, rank in (("svd_lora", 4), ("lora", 1)):
            method = load_method(name, codec, adapter=None, rank=rank, seed=round(16 * quality))
            adapted = method.prepare(codec, x)
            shake(adapted, round(16 * quality))
            (files[f"{name}-{height}x{width}-q{quality:g}"],) = api.write(
                codec, adapted.latents(x), (height, width), method, adapted
            )
    codec, x = lc.load_codec("tic-v", 2), whole[None, :, :64, :64]
    margin, hyperprior.MARGIN = hyperprior.MARGIN, 0.01  # about one latent in fifty gets a hint
    files["hints-64x64-q2"] = plain(codec, x, (64, 64))
    hyperprior.MARGIN = margin
    method = load_method("svd_lora", codec, "cls-scenes")
    adapted = method.prepare(codec, x)
    (files["pretrained-64x64-q2"],) = api.write(codec, adapted.latents(x), (64, 64), method, adapted)
    return files


@torch.no_grad()
def forged_files(codec) -> dict[str, bytes]:
    """Files with valid checksums that no encoder writes: values of up to 2^30 on every latent."""
    coder, files = codec.coder(), {}
    sizes = {"huge-y": (2.0**30, 0), "large-y": (2.0**20, 0), "huge-z": (0, 2**30), "large-z": (0, 99)}
    for name, (y_size, z_size) in sizes.items():
        z = torch.full((1, codec.N, 1, 1), float(z_size))
        z[:, ::2] *= -1
        z += codec.medians[None, :, None, None]
        hyper = coder.hyper((z[0] - codec.medians[:, None, None]).round().int().numpy())
        symbols = torch.full((1, codec.M, 1, 1), y_size)
        symbols[:, 1::2] *= -1
        y = torch.zeros(1, codec.M, *hyper.shape[2:], dtype=torch.float64)
        y = quantise(coder.prior, y, hyper, lambda y, symbols=symbols: symbols.to(y).expand_as(y)).coded.float()
        coded = coder.compress({"y": y, "z": z})
        header = bitstream.Header(64, 64, codec.name, codec.quality, codec.hash, coded.symbols_crc)
        files[name] = bitstream.write(header, bitstream.Sections(coded.sections))
    return files


def edited_files(data: bytes) -> dict[str, bytes]:
    """A valid adapted file with one field changed and a valid checksum."""
    edits = {
        "long": ("height", varint(2**28 - 1)),
        "wide": ("width", varint(2**28 - 1)),
        "thin": ("width", varint(2**24 - 1)),
        "largest": ("width", varint(2**22 - 1)),
        "quality-15": ("quality", b"\xf0"),
        "quality-fraction": ("quality", b"\x21"),
        "method-7": ("method", b"\x07"),
        "method-duic": ("method", b"\x05"),
        "no-latents": ("latent sections", b"\0"),
        "one-latent": ("latent sections", b"\1"),
        "flags-ff": ("flags", b"\xff"),
        "rank-0": ("adapter hash", b"\0\0\x08\0"),
        "rank-255": ("adapter hash", b"\0\xff\xff\xff"),
        "unknown-adapter": ("adapter hash", b"\x80abc"),
        "unknown-codec": ("codec hash", b"\0\0\0\0"),
        "other-symbols": ("symbols CRC", b"\0\0\0\0"),
        "long-z": ("length 0", varint(2**35 - 1)),
        "no-z": ("length 0", varint(0)),
    }
    edits["name-tic"] = ("codec", b"\0")  # an architecture without weights in the package
    edits |= {f"name-{i}": ("codec", bytes([128 + len(name)]) + name) for i, name in enumerate(NAMES)}
    files = {}
    for name, (field, value) in edits.items():
        parts = split(data)
        parts.fields[field] = value
        files[name] = parts.join(fitting=False)
    for which, section in enumerate(("z", "y", "payload")):
        for name, value in (("empty", b""), ("noise", random.Random(which).randbytes(60)), ("ones", b"\xff" * 200)):
            parts = split(data)
            parts.sections[which] = value
            files[f"{section}-{name}"] = parts.join(fitting=True)
    return files


def payloads() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {"empty": b"", "short": b"\x05", "step-31": b"\xff\x00abcd", "noise": b"\x05\xff" + rng.bytes(60)}
    for name, reach in (("small", 1), ("wide", 300), ("huge", 2**31 - 1)):
        files[name] = updates.encode(rng.integers(-reach, reach + 1, DELTAS).astype(np.int32), 5)
    return files


def coder_inputs() -> dict[str, dict[str, bytes]]:
    """Inputs of the C++ targets, by target; the targets define the first bytes."""
    decode: dict[str, bytes] = {}
    round_trip: dict[str, bytes] = {}
    latents: dict[str, bytes] = {}
    rng = random.Random(0)
    for tables in range(6):
        for head in (0, 8, 0x10, 5, 0x1D, 0x0B, 0x40):  # blocks - 1, escapes, log2 of the lanes
            n = rng.choice([1, 40, 700, 3000])
            decode[f"{tables}-{head:02x}"] = (
                bytes([tables, n & 255, n >> 8, rng.randrange(8), head])
                + b"\x90\x01" * (head >> 4)
                + b"\0\0\0\1" * (1 << (head & 7))
                + rng.randbytes(rng.choice([0, 40, 200]))
            )
        for n, shape in ((1, 0), (3000, 0), (65535, 0), (40000, 31), (9000, 128)):
            round_trip[f"{tables}-{n}"] = bytes([tables, n & 255, n >> 8, shape, rng.choice([0, 4])]) + rng.randbytes(4)
    for scales, n, hints in ((1, 1, 0), (2, 300, 3), (3, 2000, 1), (8, 50, 20), (16, 400, 0)):
        stream = bytes([0]) + b"\0\0\0\1" + rng.randbytes(20 + n // 4)
        named = b"".join(rng.randrange(n).to_bytes(4, "little") + bytes([rng.randrange(20)]) for _ in range(hints))
        latents[f"{scales}-{n}"] = bytes([scales, n & 255, n >> 8, hints]) + named + stream
    return {"rans_decode": decode, "rans_round_trip": round_trip, "latents_decode": latents}


def main() -> None:
    valid = valid_files()
    folders = {
        "valid": {f"{name}.lcz": data for name, data in valid.items()},
        "forged": {
            f"{name}.lcz": data
            for name, data in (
                forged_files(lc.load_codec("tic-v", 2)) | edited_files(valid["svd_lora-16x16-q2"])
            ).items()
        },
        "payload": payloads(),
        **coder_inputs(),
    }
    shutil.rmtree(CORPUS, ignore_errors=True)
    for folder, files in folders.items():
        (CORPUS / folder).mkdir(parents=True)
        for name, data in files.items():
            (CORPUS / folder / name).write_bytes(data)
        print(f"{folder}: {len(files)} files, {sum(map(len, files.values()))} bytes")


if __name__ == "__main__":
    main()
