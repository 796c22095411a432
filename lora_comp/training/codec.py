"""Rate-distortion training of a codec: bpp + lambda 255^2 MSE (Balle et al., ICLR 2018)."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_comp.codecs.tic_v import LAMBDAS
from lora_comp.objective import use_bf16
from lora_comp.training import loop, parallel
from lora_comp.training.crops import Crops

CLIP = 10.0  # maximal gradient norm; 1 slows down the first steps, where the loss is large


def bits(likelihoods: dict[str, Tensor]) -> Tensor:
    """Ideal code length of all latents in bits, -sum log2 p: a scalar."""
    return torch.stack([-p.log2().sum() for p in likelihoods.values()]).sum()


def train(
    codec: Any,
    folder: Path,
    data: Crops,
    quality: int,
    *,
    batch: int,
    lr: float,
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
) -> dict:
    """Train `codec` in place, on its device, for one rate point.

    Args:
        folder: for checkpoint and curves, see `loop.fit`.
        quality: rate point, 1 to 4, an index into `LAMBDAS`.
        batch: crops per step, over all processes.
        lr: peak learning rate of Adam.
        steps, minutes: the budget, see `loop.fit`.
    Returns:
        The last metrics: loss, bpp, psnr in dB, and the same of the validation crops as val_*.
    """
    device = next(codec.parameters()).device
    weights = [p for n, p in codec.named_parameters() if not n.endswith("quantiles")]
    optimizer = torch.optim.Adam(weights, lr=lr, fused=True)
    quantiles = torch.optim.Adam([codec.entropy_bottleneck.quantiles], lr=1e-2)
    share = parallel.share(batch)
    held_out = data.held_out(24).to(device)

    def losses(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device)):
            out = codec(x)
        mse = (out["x_hat"].float() - x).square().mean()
        bpp = bits(out["likelihoods"]) / (x.numel() / 3)
        return LAMBDAS[quality - 1] * 255**2 * mse + bpp, mse, bpp

    def step(i: int, progress: float) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = lr * loop.cosine(progress)
        loss, mse, bpp = losses(data.batch(batch, (seed << 32) + i, share).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(weights)
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        quantiles.zero_grad(set_to_none=True)
        codec.entropy_bottleneck.loss().backward()
        quantiles.step()
        means = parallel.mean({"loss": loss.item(), "bpp": bpp.item(), "mse": mse.item()})
        return {"loss": means["loss"], "bpp": means["bpp"], "psnr": -10 * math.log10(means["mse"])}

    def validate() -> dict[str, float]:
        codec.eval()
        with torch.no_grad():
            loss, mse, bpp = losses(held_out)
        codec.train()
        return {"val_loss": loss.item(), "val_bpp": bpp.item(), "val_psnr": -10 * math.log10(mse.item())}

    codec.train()
    parts = {"codec": codec, "optimizer": optimizer, "quantiles": quantiles}
    row = loop.fit(
        folder, parts, step, steps=steps, minutes=minutes, seed=seed, validate=validate, title=f"quality {quality}"
    )
    codec.eval()
    return row
