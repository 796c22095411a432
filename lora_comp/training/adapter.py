"""Pre-training an adapter for a task: the stage before shipping, in which all of U, S and V are trained.

weight x distortion + bpp, the objective of `ttft`, over many images; see "Pre-training" in LoRA_comp, CVPR 2025.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from lora_comp.codecs import Codec
from lora_comp.methods.svd_lora import Adapted, LowRankLinear, seeded
from lora_comp.training import loop, parallel
from lora_comp.training.codec import bits
from lora_comp.ttft import use_bf16


def train(
    codec: Codec,
    method: str,
    task,
    batches,
    folder: Path,
    *,
    lr: float,
    rank: int = 4,
    alpha: int = 8,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict]:
    """Train an adapter for a frozen codec, where it lies, and a task there; see `loop.fit` for the budget and `folder`.

    Args:
        method: "svd_lora", or "lora", whose S stays at 1.
        batches: called with the step, gives images float32 (B, 3, H, W), sides multiples of 64, for all processes.
    Returns:
        The tensors of the adapter, `LAYER.U` and so on, and the last metrics.
    """
    device = next(codec.parameters()).device
    adapted = Adapted(codec, seeded(codec, method, rank, alpha), travels="", exponent=0).train()
    low_rank = {n.removeprefix("codec."): m for n, m in adapted.named_modules() if isinstance(m, LowRankLinear)}
    trained = {f"{n}.{k}": getattr(m, k) for n, m in low_rank.items() for k in "USV"}
    parameters = [p.requires_grad_() for n, p in trained.items() if method == "svd_lora" or not n.endswith(".S")]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    weight = task.weight(codec.quality)

    def step(i: int, progress: float) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = lr * loop.cosine(progress)
        x = batches(i)
        x = x[parallel.share(len(x))].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device)):
            out = adapted(x)
        bpp = bits(out["likelihoods"]) / (x.numel() / 3)
        distortion = task.loss(out["x_hat"].float().clamp(0, 1), x)
        loss = weight * distortion + bpp
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return parallel.mean({"loss": loss.item(), "bpp": bpp.item(), "distortion": distortion.item()})

    row = loop.fit(
        folder,
        {"adapter": nn.ParameterDict({n.replace(".", "/"): p for n, p in trained.items()}), "optimizer": optimizer},
        step,
        steps=steps,
        minutes=minutes,
        seed=seed,
        title=f"{task.key} quality {codec.quality}",
    )
    return {n: p.detach() for n, p in trained.items()}, row
