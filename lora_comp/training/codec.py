"""Rate-distortion training of a codec: bpp + lambda 255^2 MSE (Balle et al., ICLR 2018)."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_comp.objective import use_bf16
from lora_comp.training import loop, parallel
from lora_comp.training.crops import Crops

LAMBDAS = (0.0018, 0.0035, 0.0067, 0.013)  # quality 1 to 4
CLIP = 10.0  # of the gradient's norm; 1 holds back the first steps, where the loss is large


def bits(likelihoods: dict[str, Tensor]) -> Tensor:
    """Ideal code length of all latents in bits: a scalar, -sum log2 p."""
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
    """Train `codec` in place for one rate point, where it lies; see `loop.fit` for the budget and what `folder` gets.

    batch: crops a step, over all processes.
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
        told = parallel.mean({"loss": loss.item(), "bpp": bpp.item(), "mse": mse.item()})
        return {"loss": told["loss"], "bpp": told["bpp"], "psnr": -10 * math.log10(told["mse"])}

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
