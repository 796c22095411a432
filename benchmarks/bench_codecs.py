"""A photograph to the bytes of a file and back, 512x768, one thread: tic-v, whose context has two steps, against tic-v
without a context and CompressAI's models with a hyperprior (mbt2018-mean) and with a raster scan (mbt2018). Random
weights from a seed.
"""

import pytest
import torch
from compressai.zoo import mbt2018, mbt2018_mean
from skimage import data
from torch.nn.functional import interpolate

import lora_comp as lc

OURS = {"ours": "tic-v"}
PEERS = {"CompressAI mbt2018-mean": mbt2018_mean, "CompressAI mbt2018": mbt2018}


@pytest.fixture(scope="module")
def image():
    cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None].float() / 255
    return interpolate(cat, (512, 768), mode="bicubic").clamp(0, 1)[0]


def coder(kind):
    """An encoder, and a decoder of what it returns."""
    if kind in OURS:
        codec = lc.load_codec(OURS[kind], 2, weights=None)
        return (lambda image: lc.encode(image, codec, method="none").data), lambda coded: lc.decode(coded, codec)
    torch.manual_seed(0)
    model = PEERS[kind](4, pretrained=False).eval()
    model.update()
    return (
        torch.no_grad()(lambda image: model.compress(image[None])),
        torch.no_grad()(lambda coded: model.decompress(coded["strings"], coded["shape"])),
    )


@pytest.mark.parametrize("kind", [*OURS, *PEERS])
@pytest.mark.benchmark(group="image to bytes, tic-v, 512x768")
def test_encode(benchmark, image, kind):
    encode, _ = coder(kind)
    benchmark.pedantic(encode, (image,), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("kind", [*OURS, *PEERS])
@pytest.mark.benchmark(group="bytes to image, tic-v, 512x768")
def test_decode(benchmark, image, kind):
    encode, decode = coder(kind)
    benchmark.pedantic(decode, (encode(image),), rounds=3, warmup_rounds=1)
