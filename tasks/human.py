"""For human viewers: mean squared error, reported as PSNR and MS-SSIM."""

import torch
from pytorch_msssim import ms_ssim
from torch import Tensor

from lora_comp.codecs.tic_v import LAMBDAS
from lora_comp.data.sample import Sample
from lora_comp.tasks.rate import rate_lambda

MS_SSIM_SIDE = 161  # the least side for its five scales with a window of 11


def psnr(decoded: Tensor, original: Tensor) -> float:
    """In dB, of images (3, H, W) in [0, 1]; 100 where the mean squared error is 1e-10 or less."""
    return float(-10 * torch.log10((decoded - original).square().mean().clamp_min(1e-10)))


def multi_scale_ssim(decoded: Tensor, original: Tensor) -> float:
    """MS-SSIM of images (3, H, W) in [0, 1].

    Along a side below 161, pixels are repeated as often as the five scales need: such values can be compared with each
    other, but not with those of larger images.
    """
    rows, columns = (-(-MS_SSIM_SIDE // side) for side in original.shape[1:])
    pair = torch.stack([decoded, original]).repeat_interleave(rows, 2).repeat_interleave(columns, 3)
    return float(ms_ssim(pair[:1], pair[1:], data_range=1.0))


class Human:
    """Distortion is the mean squared error in [0, 1]; the score is PSNR in dB."""

    name = key = "human"
    lr = 1e-2  # docs/finetuning.md
    metrics = ("psnr", "ms_ssim")

    def to(self, device: torch.device) -> "Human":
        return self

    def targets(self, original: Tensor) -> Tensor:
        return original.detach()

    def distortion(self, decoded: Tensor, targets: Tensor) -> Tensor:
        return (decoded - targets).square().mean(dim=(1, 2, 3))

    def loss(self, decoded: Tensor, original: Tensor) -> Tensor:
        return self.distortion(decoded, self.targets(original)).mean()

    def weight(self, quality: float) -> float:
        return 255**2 * rate_lambda(LAMBDAS, quality)

    def answer(self, image: Tensor) -> None:
        """There is no network that answers."""

    def measure(self, decoded: Tensor, sample: Sample) -> dict[str, float]:
        decoded = decoded.detach().clamp(0, 1)
        value = psnr(decoded, sample.image)
        return {"score": value, "psnr": value, "ms_ssim": multi_scale_ssim(decoded, sample.image)}
