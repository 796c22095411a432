"""A codec in one file: the means of 8x8 blocks, which it gives to a network as the features of a layer "blocks"."""

import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lora_comp.codecs import Output, Rate, Spec
from lora_comp.entropy.coder import CodedLatents, checksum
from lora_comp.entropy.models import round_ste
from lora_comp.errors import BitstreamError


class Deflate:
    """Latents as int8, compressed by zlib: one section."""

    tables = ()

    def compress(self, latents):
        symbols = latents["y"][0].round().clamp(-128, 127).numpy().astype(np.int8)
        return CodedLatents([zlib.compress(symbols.tobytes(), 9)], checksum(symbols))

    def decompress(self, coded, size):
        shape = 3, *(-(-side // 8) for side in size)
        data = zlib.decompressobj().decompress(coded.sections[0], int(np.prod(shape)) + 1)
        symbols = np.frombuffer(data, np.int8)
        if len(data) != np.prod(shape) or checksum(symbols) != coded.symbols_crc:
            raise BitstreamError("the latents of the file are damaged")
        return torch.from_numpy(symbols.astype(np.float32)).view(1, *shape)


class Blocks(nn.Module):
    """x (B, 3, H, W) to y (B, 3, H/8, W/8), the block means in units of `step`; there is no z."""

    stride, latent_stride, output = 8, 8, Output("blocks", 8)

    def __init__(self, quality):
        super().__init__()
        self.step = nn.Parameter(torch.tensor(2.0 ** -(quality + 2)))

    def latents(self, x):
        return self.latents_from(F.avg_pool2d(x - 0.5, 8) / self.step)

    def latents_from(self, y):
        return {"y": y}

    def rate(self, latents, rounding=round_ste):
        y_hat = rounding(latents["y"])
        return Rate(y_hat, {"y": torch.exp2(-1 - y_hat.abs())})

    def synthesize(self, y_hat):
        return y_hat * self.step + 0.5

    def coder(self):
        return Deflate()


SPEC = Spec(Blocks, qualities=(1, 2, 3, 4))  # lora_comp/codecs/__init__.py: CODECS["blocks"] = blocks.SPEC
