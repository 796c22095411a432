"""The convolution of 3x3 in a quarter of the multiplications against torch's, with a bias and a ReLU.

Layers of the U-Net that makes prompts, for a 256x256 image, in channels_last. The weight's products are known, as they
are of a frozen layer.
"""

import pytest
import torch

from lora_comp.ops.conv import conv3x3, plain_conv3x3, products_of

SHAPES = {"tic-v, last": (16, 16, 128), "tic-v, joined": (64, 32, 64), "tic, joined": (128, 64, 128)}  # and channels


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["ours", "torch"])
def test_forward(benchmark, kind, name):
    channels, out, side = SHAPES[name]
    benchmark.group = f"convolution of 3x3, {name}, {channels} to {out} channels, {side}x{side}"
    torch.manual_seed(0)
    x, weight = torch.randn(1, channels, side, side), torch.randn(out, channels, 3, 3) / (3 * channels**0.5)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    bias, products = torch.randn(out), products_of(weight)

    @torch.no_grad()
    def run(kind):
        if kind == "torch":
            return plain_conv3x3(x, weight, bias, relu=True)
        return conv3x3(x, weight, bias, relu=True, products=products)

    y = benchmark.pedantic(run, (kind,), rounds=20, warmup_rounds=2)
    torch.testing.assert_close(y, run("torch"), rtol=1e-4, atol=1e-4)
