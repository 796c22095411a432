"""For human viewers: mean squared error or MS-SSIM, both reported, the former as PSNR."""

from dataclasses import dataclass

import torch
from pytorch_msssim import ms_ssim
from torch import Tensor

from lora_comp.codecs.tic_v import LAMBDAS
from lora_comp.data.sample import Sample
from lora_comp.errors import LoraCompError
from lora_comp.settings import setting
from lora_comp.tasks.rate import rate_lambda

MS_SSIM_SIDE = 161  # the least side for its five scales with a window of 11
MS_SSIM_LAMBDAS = (2.4, 4.58, 8.73, 16.64, 31.73, 60.5)  # of 1 - MS-SSIM at quality 1 to 6; CompressAI's


def psnr(decoded: Tensor, original: Tensor) -> float:
    """In dB, of images (3, H, W) in [0, 1]; 100 where the mean squared error is 1e-10 or less."""
    return float(-10 * torch.log10((decoded - original).square().mean().clamp_min(1e-10)))


def multi_scale_ssim(decoded: Tensor, original: Tensor) -> Tensor:
    """MS-SSIM of each image: (B,), of (B, 3, H, W) in [0, 1].

    Along a side below 161, pixels are repeated as often as the five scales need: such values can be compared with each
    other, but not with those of larger images.
    """
    rows, columns = (-(-MS_SSIM_SIDE // side) for side in original.shape[2:])
    pair = [x.float().repeat_interleave(rows, 2).repeat_interleave(columns, 3) for x in (decoded, original)]
    with torch.autocast(decoded.device.type, enabled=False):  # differences of squares
        return ms_ssim(*pair, data_range=1.0, size_average=False)


@dataclass(frozen=True)
class HumanOptions:
    metric: str = setting("mse", "what is minimised, and the score", choices=("mse", "ms-ssim"))


class Human:
    """Distortion is the mean squared error in [0, 1], and the score is PSNR in dB; or they are 1 - MS-SSIM and MS-SSIM.

    metric: "mse" or "ms-ssim".
    """

    name, key, options = "human", "human", HumanOptions
    lr = 1e-2  # docs/finetuning.md
    metrics: tuple[str, ...] = ("psnr", "ms_ssim")
    metric = "mse"

    def __init__(self, metric: str = "mse"):
        if metric not in ("mse", "ms-ssim"):
            raise LoraCompError(f"the metric of human must be mse or ms-ssim, not {metric}")
        if metric == "ms-ssim":
            self.metric, self.metrics = metric, ("ms_ssim", "psnr")
            self.name = self.key = f"human-{metric}"

    def to(self, device: torch.device) -> "Human":
        return self

    def targets(self, original: Tensor) -> Tensor:
        return original.detach()

    def distortion(self, decoded: Tensor, targets: Tensor) -> Tensor:
        if self.metric == "ms-ssim":
            return 1 - multi_scale_ssim(decoded, targets)
        return (decoded - targets).square().mean(dim=(1, 2, 3))

    def loss(self, decoded: Tensor, original: Tensor) -> Tensor:
        return self.distortion(decoded, self.targets(original)).mean()

    def weight(self, quality: float) -> float:
        if self.metric == "ms-ssim":
            return rate_lambda(MS_SSIM_LAMBDAS, quality)
        return 255**2 * rate_lambda(LAMBDAS, quality)

    def answer(self, image: Tensor) -> None:
        """There is no network that answers."""

    def measure(self, decoded: Tensor, sample: Sample) -> dict[str, float]:
        decoded = decoded.detach().clamp(0, 1)
        similarity = float(multi_scale_ssim(decoded[None], sample.image[None]))
        measured = {"psnr": psnr(decoded, sample.image), "ms_ssim": similarity}
        return {"score": measured[self.metrics[0]], **measured}
