"""A file decodes to the same symbols under other numbers of threads, libraries, precisions and instruction sets.

Every file holds the CRC-32 of its symbols; a decoder that decodes different ones raises BitstreamError. This process
encodes, others decode. `pytest -m slow tests/test_decode_anywhere.py` uses 200 files.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_stf
import torch
from PIL import Image

import lora_comp as lc
from lora_comp.codecs import CODECS, load_codecs
from lora_comp.data.folders import photograph
from lora_comp.weights import write_weights

TOYS = str(Path(small_stf.__file__).parent)
DECODER = """
import itertools, json, pathlib, sys, torch
import lora_comp as lc
from lora_comp import bitstream
from lora_comp.codecs import load_codecs
from lora_comp.entropy.coder import CodedLatents
sys.path.insert(0, sys.argv[5])
import small_stf
lc.codecs.CODECS[small_stf.NAME] = small_stf.SPEC
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


@pytest.fixture(params=["tic-s", small_stf.NAME, pytest.param("tic-v", marks=pytest.mark.data)])
def codec(request, monkeypatch):
    """Name, weights and qualities."""
    if request.param == "tic-s":
        return "tic-s", "default", [1, 2, 3, 4]
    if request.param == small_stf.NAME:
        monkeypatch.setitem(CODECS, small_stf.NAME, small_stf.SPEC)
        return small_stf.NAME, str(request.getfixturevalue("stf_weights")), [1, 2, 3, 4]
    return "tic-v", str(request.getfixturevalue("trained_tic_v_weights")), [1, 2.25, 4.5, 6]


def write_files(codec, arrays, folder):
    """Encode the images, each at the next quality."""
    name, weights, qualities = codec
    codecs = list(load_codecs(name, qualities, weights).values())
    for i, array in enumerate(arrays):
        image = torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 255
        (folder / f"{i}.lcz").write_bytes(lc.encode(image, codecs[i % len(codecs)], method="none").data)


def decode_in_another_process(codec, folder, capability):
    name, weights, qualities = codec
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DECODER, str(folder), name, weights, json.dumps(qualities), TOYS],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


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
