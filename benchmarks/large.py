"""`python benchmarks/large.py [SIDE]...`: time and memory of adaptation to large images, by side (Linux).

tic-v, quality 2, task cls, default steps, one core; the image is an enlarged photograph of scikit-image with noise.
Processor time, and peak memory above that before; plain: encoding and decoding without adaptation.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from memory import resident

import lora_comp as lc
from lora_comp.data.folders import photograph


def measured(work: Callable) -> tuple:
    """The result of `work`, its processor seconds and its peak MB."""
    before, start = resident("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")
    result = work()
    return result, time.process_time() - start, resident("VmHWM") - before


def main(sides: list[int]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codec, task = lc.load_codec("tic-v", 2), lc.load_task("cls")
    small = torch.from_numpy(photograph("chelsea")).permute(2, 0, 1)[None].float() / 255
    print("| side | plain: coding | decoding | adapted: coding | s a megapixel |\n|---:|---:|---:|---:|---:|")
    for side in sides:
        image = F.interpolate(small, (side, side), mode="bicubic")[0]
        image = (image + 0.05 * torch.rand_like(image)).clamp(0, 1)
        data, *coding = measured(lambda image=image: lc.encode(image, codec, method="none").data)
        decoded, *decoding = measured(lambda data=data: lc.decode(data, codec))
        assert decoded.shape == image.shape
        coded, *adapting = measured(lambda image=image: lc.encode(image, codec, task))
        assert coded.loss_after < coded.loss_before
        cells = [f"{seconds:.1f} s, {mb:.0f} MB" for seconds, mb in (coding, decoding, adapting)]
        print(f"| {side} | {' | '.join(cells)} | {adapting[0] / (side / 1000) ** 2:.0f} |", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [256, 512, 1024, 2048])
