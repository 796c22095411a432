"""Rate-distortion training of a codec: bpp + lambda 255^2 MSE (Balle et al., ICLR 2018), at one rate or at all.

Each crop of a batch has its own rate (`Rates`). The moving average of the weights is what is validated, and what the
codec has at the end. In the last tenth of a training the synthesis transform alone is trained, on the latents that the
averaged encoder transmits.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_comp.codecs import Rate
from lora_comp.codecs.tic_v import LAMBDAS
from lora_comp.objective import use_bf16
from lora_comp.replay import Replayed
from lora_comp.tasks.rate import rate_lambda
from lora_comp.training import loop, parallel
from lora_comp.training.batches import batches_of
from lora_comp.training.crops import Crops
from lora_comp.training.rates import Rates
from lora_comp.training.soap import soap

CLIP = 1.0  # maximal gradient norm; with 10, trainings at all rates came apart
DECAY = 0.999  # of the moving average
TRANSFORMS, THEIRS = ("g_a.", "g_s."), 0.5  # the transforms have this share of the learning rate of all else
SYNTHESIS, ALONE = ("g_s.", "log_inverse"), 0.9  # what is trained after this progress
HELD_OUT, AT_ONCE = 24, 4  # crops of validation, and how many are coded together


def weight(quality: float) -> float:
    """lambda 255^2 of a quality from 1 to 6."""
    return 255**2 * rate_lambda(LAMBDAS, quality)


def train(
    codec: Any,
    folder: Path,
    data: Crops,
    qualities: tuple[float, ...],
    *,
    batch: int,
    lr: float,
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
) -> dict:
    """Train `codec` in place, on its device.

    Args:
        folder: for checkpoint and curves, see `loop.fit`.
        qualities: one rate point, or all of a codec of variable rate; numbers from 1 to 6 at `LAMBDAS`.
        batch: crops per step, over all processes.
        lr: peak learning rate of SOAP, on a GPU of Adam.
        steps, minutes: the budget, see `loop.fit`.
    Returns:
        The last metrics: loss, bpp, psnr in dB; val_loss, the mean over the validation crops and rate points, and
        val_bpp and val_psnr, or val_bpp_q1 and so on of each rate point.
    """
    rates = Rates(qualities, weight)
    training = _Training(codec, data, rates, batch, lr, seed)
    held_out = data.held_out(HELD_OUT).to(training.device)
    codec.train()
    row = loop.fit(
        folder,
        training.parts,
        training.step,
        steps=steps,
        minutes=minutes,
        seed=seed,
        validate=lambda: validate(training.average, rates, held_out),
        title=str(rates),
    )
    codec.load_state_dict(training.average.state_dict())
    codec.eval()
    return row


@torch.no_grad()
def validate(codec: Any, rates: Rates, x: Tensor) -> dict[str, float]:
    """Objective, bpp and PSNR of images x at each rate point, with rounded latents: means over the images."""
    losses: list[float] = []
    found: dict[str, float] = {}
    for quality in rates.qualities:
        rows = torch.cat([_measured(rates.at(codec, quality), part) for part in x.split(AT_ONCE)])
        mse, bpp = rows.unbind(1)
        factor = rates.weight(quality)
        losses.append(rates.balance(factor) * (bpp + factor * mse).mean().item())
        of = f"_q{quality:g}" if rates.variable else ""
        found |= {f"val_bpp{of}": bpp.mean().item(), f"val_psnr{of}": (-10 * mse.log10()).mean().item()}
    return {"val_loss": sum(losses) / len(losses), **found}


def _measured(codec: Any, x: Tensor) -> Tensor:
    """MSE and bpp of images: (B, 2)."""
    rate, x_hat = _coded(codec, x)
    mse = (x_hat.clamp(0, 1) - x).square().mean((1, 2, 3))
    return torch.stack([mse, rate.bits / x[0, 0].numel()], 1)


def _coded(codec: Any, x: Tensor) -> tuple[Rate, Tensor]:
    """Quantised latents of images, and the decoded images in float32."""
    with _autocast(x.device):
        rate = codec.rate(codec.latents(x))
        return rate, codec.synthesize(rate.y_hat).float()


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device), cache_enabled=False)


def adam(groups: Iterable[list[nn.Parameter]], lrs: Sequence[Tensor]) -> torch.optim.Adam:
    """For a GPU: a CUDA graph cannot record the decompositions of SOAP."""
    named = [{"params": parameters, "lr": lr} for parameters, lr in zip(groups, lrs, strict=True)]
    return torch.optim.Adam(named, fused=True, capturable=True)


class _Training:
    """Steps on tensors that stay where they are, so that CUDA graphs can replay them.

    parts: the state, see `loop.fit`.
    """

    def __init__(self, codec: Any, data: Crops, rates: Rates, batch: int, lr: float, seed: int):
        self.codec, self.rates, self.batch, self.lr, self.seed = codec, rates, batch, lr, seed
        # Not frozen: a frozen module keeps what it computes from weights, and a replayed step changes them unnoticed.
        self.average = copy.deepcopy(codec).eval()
        named = {n: p for n, p in codec.named_parameters() if not n.endswith("quantiles")}
        self.weights = list(named.values())
        self.device = self.weights[0].device
        groups = {
            THEIRS: [p for n, p in named.items() if n.startswith(TRANSFORMS)],
            1.0: [p for n, p in named.items() if not n.startswith(TRANSFORMS)],
        }
        on_gpu = self.device.type == "cuda"
        self.shares, self.lrs = list(groups), [torch.zeros((), device=self.device) for _ in groups]
        self.optimizer = adam(groups.values(), self.lrs) if on_gpu else soap(list(groups.values()), lr)
        self.quantiles = torch.optim.Adam([codec.entropy_bottleneck.quantiles], lr=1e-2, capturable=on_gpu)
        self.parts = {
            "codec": codec,
            "average": self.average,
            "adam" if on_gpu else "soap": self.optimizer,  # a training that changes its device does not resume
            "quantiles": self.quantiles,
        }
        self.share = parallel.share(batch)
        self.images = batches_of(data, batch, self.device)
        self.factors = torch.zeros(3, self.share.stop - self.share.start, device=self.device)
        self.renewal = torch.zeros((), device=self.device)  # of the moving average
        self.kind: Callable[[], Tensor] | None = None
        self.take: Callable[[], Tensor]

    def step(self, i: int, progress: float) -> dict[str, float]:
        """One update; see `loop.fit`."""
        self.images.load((self.seed << 32) + i)
        self.factors.copy_(self.rates.draw(i, self.batch)[:, self.share])
        self.renewal.fill_(max(1 - DECAY, 1 / (i + 2)))
        for group, lr, share in zip(self.optimizer.param_groups, self.lrs, self.shares, strict=True):
            now = share * self.lr * loop.cosine(progress)
            group["lr"] = lr.fill_(now) if self.device.type == "cuda" else now  # a checkpoint brings its own tensor
        kind = self._all if progress < ALONE else self._synthesis
        if kind != self.kind:
            self.kind, self.take = kind, self._recorded(kind)
        loss, bpp, mse = self.take().tolist()
        means = parallel.mean({"loss": loss, "bpp": bpp, "mse": mse})
        return {"loss": means["loss"], "bpp": means["bpp"], "psnr": -10 * math.log10(means["mse"])}

    def _recorded(self, kind: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A step that a CUDA graph replays; of several processes, which exchange gradients, as it is."""
        return Replayed(kind, self.device) if parallel.size() == 1 else kind

    def _all(self) -> Tensor:
        """A step of all weights: returns loss, bpp and MSE."""
        x = self.images()
        rate, x_hat = _coded(self.rates.at(self.codec, self.factors[0]), x)
        found = self._descend(x, x_hat, rate)
        self.quantiles.zero_grad(set_to_none=True)
        self.codec.entropy_bottleneck.loss().backward()
        self.quantiles.step()
        self._renew(lambda name: True)
        return found

    def _synthesis(self) -> Tensor:
        """A step of the synthesis transform: returns loss, bpp and MSE."""
        x, quality = self.images(), self.factors[0]
        with _autocast(self.device):
            with torch.no_grad():
                encoder = self.rates.at(self.average, quality)
                rate = encoder.rate(encoder.latents(x))
            x_hat = self.rates.at(self.codec, quality).synthesize(rate.y_hat).float()
        found = self._descend(x, x_hat, rate)
        self._renew(lambda name: name.startswith(SYNTHESIS))
        return found

    def _descend(self, x: Tensor, x_hat: Tensor, rate: Rate) -> Tensor:
        _, of_bpp, of_mse = self.factors
        mse, bpp = (x_hat - x).square().mean((1, 2, 3)), rate.bits / x[0, 0].numel()
        loss = (of_bpp * bpp + of_mse * mse).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(self.weights)
        norm = nn.utils.clip_grad_norm_(self.weights, CLIP)
        # The optimiser skips a step for which this is 1, as torch.amp.GradScaler has it.
        self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[union-attr]
        self.optimizer.step()
        return torch.stack([loss, bpp.mean(), mse.mean()]).detach()

    @torch.no_grad()
    def _renew(self, chosen: Callable[[str], bool]) -> None:
        """Move the average towards the weights."""
        of = dict(self.average.named_parameters())
        pairs = [(of[name], p) for name, p in self.codec.named_parameters() if chosen(name)]
        averages, weights = [list(side) for side in zip(*pairs, strict=True)]
        apart = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(apart, self.renewal)
        torch._foreach_add_(averages, apart)
