"""A file decodes to the same symbols under other numbers of threads, libraries, precisions and instruction sets, and
under other versions of Python and torch.

Every file holds the CRC-32 of its symbols; a decoder that decodes different ones raises BitstreamError. This process
encodes, others decode. `pytest -m slow tests/test_decode_anywhere.py` uses 200 files. LORA_COMP_PYTHONS="OLD/bin/python
NEW/bin/python" names environments with other versions, which have the package installed: each decodes the 200 files of
this one, and this one theirs.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import lora_comp as lc
from lora_comp.bitstream import SIXTEENTHS
from lora_comp.codecs import CODECS, load_codecs
from lora_comp.data.folders import photograph
from lora_comp.weights import write_weights

PYTHONS = os.environ.get("LORA_COMP_PYTHONS", "").split()

DECODER = """
import itertools, json, pathlib, sys, torch
import lora_comp as lc
from lora_comp import bitstream
from lora_comp.codecs import load_codecs
from lora_comp.entropy.coder import CodedLatents
folder, name, weights, qualities = pathlib.Path(sys.argv[1]), *sys.argv[2:4], json.loads(sys.argv[4])
codecs = load_codecs(name, qualities, weights)
tried, wrong = 0, []
for threads, onednn, precision in itertools.product((1, 2), (True, False), ("highest", "medium")):
    torch.set_num_threads(threads)
    torch._C._set_mkldnn_enabled(onednn)
    torch.set_float32_matmul_precision(precision)
    for path in sorted(folder.iterdir()):
        header, sections = bitstream.read(path.read_bytes())
        try:
            codecs[header.quality].coder().decompress(
                CodedLatents(sections.latents, header.symbols_crc, sections.hints), (header.height, header.width))
        except lc.BitstreamError as error:
            wrong.append(f"{path.name}, {threads} threads, oneDNN {onednn}, {precision}: {error}")
        tried += 1
print(json.dumps([torch.backends.cpu.get_cpu_capability(), tried, wrong]))
"""

# For environments with other versions. Each image is coded at the next quality.
ENCODER = """
import json, pathlib, sys
import lora_comp as lc
from lora_comp.codecs import load_codecs
images, folder, name, weights, qualities = *map(pathlib.Path, sys.argv[1:3]), *sys.argv[3:5], json.loads(sys.argv[5])
codecs = list(load_codecs(name, qualities, weights).values())
for i, path in enumerate(sorted(images.iterdir())):
    (folder / f"{path.stem}.lcz").write_bytes(lc.encode(path, codecs[i % len(codecs)], method="none").data)
"""
# Prints the versions, and for each file the error, or checksums of decoded latents (float32) and pixels (uint8).
CHECKSUMS = """
import json, pathlib, platform, sys, zlib, numpy, torch
import lora_comp as lc
from lora_comp import bitstream
from lora_comp.codecs import load_codecs
from lora_comp.entropy.coder import CodedLatents
folder, name, weights, qualities = pathlib.Path(sys.argv[1]), *sys.argv[2:4], json.loads(sys.argv[4])
codecs, found = load_codecs(name, qualities, weights), {}
for path in sorted(folder.iterdir()):
    header, sections = bitstream.read(path.read_bytes())
    codec, size = codecs[header.quality], (header.height, header.width)
    try:
        latents = codec.coder().decompress(CodedLatents(sections.latents, header.symbols_crc, sections.hints), size)
        with torch.inference_mode():
            pixels = (codec.output.crop(codec.synthesize(latents), size) * 255).round().byte()
        found[path.name] = [zlib.crc32(t.contiguous().numpy().tobytes()) for t in (latents, pixels)]
    except lc.BitstreamError as error:
        found[path.name] = str(error)
versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}"
print(json.dumps([versions, found]))
"""


@pytest.fixture(params=["tic-v", "stf-s"])
def codec(request):
    """Name, weights and qualities."""
    if request.param == "stf-s":
        return "stf-s", str(request.getfixturevalue("stf_weights")), [1, 2, 3, 4]
    return "tic-v", "default", [1, 2.25, 4.5, 6]


def write_files(codec, arrays, folder):
    """Encode the images, each at the next quality."""
    name, weights, qualities = codec
    codecs = list(load_codecs(name, qualities, weights).values())
    for i, array in enumerate(arrays):
        image = torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 255
        (folder / f"{i}.lcz").write_bytes(lc.encode(image, codecs[i % len(codecs)], method="none").data)


def run(python, script, codec, *folders, **environment):
    """What a script prints in a process of its own."""
    name, weights, qualities = codec
    return subprocess.run(
        [python, "-W", "ignore", "-c", script, *map(str, folders), name, weights, json.dumps(qualities)],
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def decode_in_another_process(codec, folder, capability):
    return json.loads(run(sys.executable, DECODER, codec, folder, ATEN_CPU_CAPABILITY=capability).splitlines()[-1])


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_files_decode_to_the_same_symbols(tmp_path, codec, capability):
    cat = photograph("chelsea")
    write_files(codec, [cat[i : i + 30 + 19 * i, 3 * i : 150 + i] for i in range(4)], tmp_path)
    used, tried, wrong = decode_in_another_process(codec, tmp_path, capability)
    assert used == ("DEFAULT" if capability == "default" else used)
    assert (tried, wrong) == (4 * 8, [])


@pytest.mark.slow
@pytest.mark.data
def test_two_hundred_files_decode_to_the_same_symbols(tmp_path, codec, shared):
    paths = sorted((shared / "data" / "photos").rglob("*.jp*g"))[::5]
    write_files(codec, [Image.open(p).convert("RGB") for p in paths], tmp_path)
    assert len(list(tmp_path.iterdir())) == 200
    widest = "AVX512" in torch.backends.cpu.get_cpu_capability()
    for capability in ("default", "avx2", *["avx512"] * widest):
        used, tried, wrong = decode_in_another_process(codec, tmp_path, capability)
        print(f"{used}: {tried} decoded, {len(wrong)} mismatches")
        assert (tried, wrong) == (200 * 8, [])


@pytest.mark.slow
@pytest.mark.data
def test_fifty_files_of_stf_decode_to_the_same_y_hat(tmp_path, golden, shared):
    """All twelve slices of the published size, under the weights of the parity vectors."""
    codec = lc.from_reference("stf", golden("stf")[0])
    write_weights(tmp_path / "stf.safetensors", dict(codec.named_parameters()), {}, torch.float32)
    (tmp_path / "files").mkdir()
    paths = sorted((shared / "data" / "photos").rglob("*.jp*g"))[::20]
    stf = "stf", str(tmp_path / "stf.safetensors"), [4]
    write_files(stf, [Image.open(p).convert("RGB").crop((0, 0, 120, 60)) for p in paths], tmp_path / "files")
    widest = "AVX512" in torch.backends.cpu.get_cpu_capability()
    for capability in ("default", "avx2", *["avx512"] * widest):
        used, tried, wrong = decode_in_another_process(stf, tmp_path / "files", capability)
        print(f"{used}: {tried} decoded, {len(wrong)} mismatches")
        assert (tried, wrong) == (50 * 8, [])


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not PYTHONS, reason="LORA_COMP_PYTHONS names no environments")
def test_versions_of_python_and_torch_decode_to_the_same_symbols(tmp_path, codec, shared):
    """At every quality in turn. How many files, latents and images are equal, which come from float32, is printed."""
    name, weights, qualities = codec
    if CODECS[name].variable:
        qualities = [i / SIXTEENTHS for i in range(SIXTEENTHS, 6 * SIXTEENTHS + 1)]
    codec = name, weights, qualities
    images = tmp_path / "images"
    images.mkdir()
    for i, path in enumerate(sorted((shared / "data" / "photos").rglob("*.jp*g"))[::5]):
        Image.open(path).convert("RGB").crop((0, 0, 256, 256)).save(images / f"{i:03}.png")
    files = {python: tmp_path / f"{i}" for i, python in enumerate([sys.executable, *PYTHONS])}
    for python, folder in files.items():
        folder.mkdir()
        run(python, ENCODER, codec, images, folder)
    wrong = []
    for encoder, folder in files.items():
        decoders = files if encoder == sys.executable else [encoder, sys.executable]
        found = {python: json.loads(run(python, CHECKSUMS, codec, folder).splitlines()[-1]) for python in decoders}
        versions, own = found[encoder]
        assert len(own) == 200
        same = sum((folder / file).read_bytes() == (files[sys.executable] / file).read_bytes() for file in own)
        print(f"{versions}: {same} files as this environment writes them")
        for other, theirs in found.values():
            errors = [f"{versions} > {other}, {file}: {crcs}" for file, crcs in theirs.items() if isinstance(crcs, str)]
            latents, pixels = (sum(own[file][k] == theirs[file][k] for file in own) for k in (0, 1))
            print(f"{versions} > {other}: {200 - len(errors)} decoded, {latents} equal latents, {pixels} equal images")
            wrong += errors
    assert wrong == []


@pytest.mark.gpu
def test_files_decode_to_the_same_image_on_a_gpu(tmp_path, codec):
    cat = photograph("chelsea")
    name, weights, _ = codec
    write_files(codec, [cat[i : i + 30 + 19 * i, 3 * i : 150 + i] for i in range(4)], tmp_path)
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        one = lc.load_codec(name, lc.info(data)["quality"], weights)
        here = lc.decode(data, one)
        assert (lc.decode(data, one.cuda()).cpu() - here).abs().max() < 1e-3
