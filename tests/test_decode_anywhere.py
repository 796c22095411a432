"""A file decodes to the same symbols whatever the decoder's threads, libraries, precision and instruction set.

Every file holds the CRC-32 of its symbols; a decoder that reads others raises BitstreamError. The encoder is this
process, the decoders are others. `pytest -m slow tests/test_decode_anywhere.py` takes 200 files.
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
from lora_comp.data.folders import photograph

DECODER = """
import itertools, json, pathlib, sys, torch
import lora_comp as lc
from lora_comp import bitstream
from lora_comp.entropy.coder import CodedLatents
codecs = {q: lc.load_codec("tic-s", q) for q in (1, 2, 3, 4)}
tried, wrong = 0, []
for threads, onednn, precision in itertools.product((1, 2), (True, False), ("highest", "medium")):
    torch.set_num_threads(threads)
    torch._C._set_mkldnn_enabled(onednn)
    torch.set_float32_matmul_precision(precision)
    for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        header, sections = bitstream.read(path.read_bytes())
        try:
            codecs[header.quality].coder().decompress(
                CodedLatents(sections.latents, header.symbols_crc, sections.hints), (header.height, header.width))
        except lc.BitstreamError as error:
            wrong.append(f"{path.name}, {threads} threads, oneDNN {onednn}, {precision}: {error}")
        tried += 1
print(json.dumps([torch.backends.cpu.get_cpu_capability(), tried, wrong]))
"""


def write_files(arrays, folder):
    """Each image at the next quality."""
    for i, array in enumerate(arrays):
        image = torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 255
        codec = lc.load_codec("tic-s", 1 + i % 4)
        (folder / f"{i}.lcz").write_bytes(lc.encode(image, codec, method="none").data)


def decode_elsewhere(folder, capability):
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DECODER, str(folder)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_files_decode_alike(tmp_path, capability):
    cat = photograph("chelsea")
    write_files([cat[i : i + 30 + 19 * i, 3 * i : 150 + i] for i in range(4)], tmp_path)
    used, tried, wrong = decode_elsewhere(tmp_path, capability)
    assert used == ("DEFAULT" if capability == "default" else used)
    assert (tried, wrong) == (4 * 8, [])


@pytest.mark.slow
@pytest.mark.data
def test_two_hundred_files_decode_alike(tmp_path, shared):
    paths = sorted((shared / "data" / "photos").rglob("*.jp*g"))[::5]
    write_files([Image.open(p).convert("RGB") for p in paths], tmp_path)
    assert len(list(tmp_path.iterdir())) == 200
    widest = "AVX512" in torch.backends.cpu.get_cpu_capability()
    for capability in ("default", "avx2", *["avx512"] * widest):
        used, tried, wrong = decode_elsewhere(tmp_path, capability)
        print(f"{used}: {tried} decoded, {len(wrong)} otherwise")
        assert (tried, wrong) == (200 * 8, [])


@pytest.mark.gpu
def test_files_decode_alike_with_the_codec_on_a_gpu(tmp_path):
    cat = photograph("chelsea")
    write_files([cat[i : i + 30 + 19 * i, 3 * i : 150 + i] for i in range(4)], tmp_path)
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        codec = lc.load_codec("tic-s", lc.info(data)["quality"])
        there = lc.decode(data, codec.cuda()).cpu()
        assert (there - lc.decode(data)).abs().max() < 1e-3
