"""Rate curves side by side: points, BD-rates, and what training and storing them takes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_comp.report.bdrate import bd_rate
from lora_comp.report.card import table
from lora_comp.weights import read_weights

METRICS = {"psnr": "PSNR", "ms_ssim_db": "MS-SSIM"}
SECONDS = ("seconds_encode", "seconds_decode")


def point(records: Sequence[Mapping[str, Any]], quality: float) -> dict[str, Any]:
    """The means of an evaluation's records (`evaluate`) of task human at one rate point. bpp is averaged per image, and
    MS-SSIM in dB is that of the mean MS-SSIM m, -10 lg (1 - m), at most 100; both as CompressAI reports them."""
    means = {
        name: sum(record[name] for record in records) / len(records)
        for name in ("bytes", "bpp", "psnr", "ms_ssim", *SECONDS)
    }
    return {"quality": quality, "count": len(records), **means, "ms_ssim_db": decibels(means["ms_ssim"])}


def decibels(similarity: float) -> float:
    return -10 * math.log10(max(1 - similarity, 1e-10))


def bd_rates(curves: Mapping[str, Sequence[Mapping[str, Any]]], anchor: str) -> dict[str, dict[str, float | None]]:
    """The BD-rate of each curve against one of them, in percent by metric; None where it is undefined."""
    found: dict[str, dict[str, float | None]] = {}
    for label, points in curves.items():
        for metric in METRICS:
            pair = [[(one["bpp"], one[metric]) for one in curve] for curve in (curves[anchor], points)]
            rate = bd_rate(*pair)
            found.setdefault(label, {})[metric] = None if math.isnan(rate) else rate
    return found


def cost(trained: Sequence[Path], frozen: Sequence[Path]) -> dict[str, Any]:
    """What the files of a curve take.

    trained: weights or adapters that were trained for it. frozen: weights that these stand on.

    Returns "parameters" (numbers in the trained files), "minutes" (of their training, by their cards; None if one does
    not say), "bytes_trained" (of these files) and "bytes_stored" (of all).
    """
    parameters, minutes = 0, list[Any]()
    for path in trained:
        tensors, card = read_weights(path, "a curve")
        parameters += sum(tensor.numel() for tensor in tensors.values())
        minutes.append(card.get("minutes"))
    sizes = [path.stat().st_size for path in trained]
    return {
        "parameters": parameters,
        "minutes": None if None in minutes else round(sum(minutes), 1),
        "bytes_trained": sum(sizes),
        "bytes_stored": sum(sizes) + sum(path.stat().st_size for path in frozen),
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of a report, see `commands.curves`, in Markdown."""
    images, anchor, curves = report["images"], report["against"], report["curves"]
    points = [
        [
            label,
            f"{one['quality']:g}",
            f"{one['bytes']:,.0f}",
            f"{one['bpp']:.4f}",
            f"{one['psnr']:.3f}",
            f"{one['ms_ssim']:.5f}",
            f"{one['ms_ssim_db']:.3f}",
            *(f"{one[name]:.2f}" for name in SECONDS),
        ]
        for label, curve in curves.items()
        for one in curve["points"]
    ]
    headings = ["curve", "quality", "bytes", "bpp", "PSNR dB", "MS-SSIM", "MS-SSIM dB", "encode s", "decode s"]
    costs = [
        [
            label,
            *(_percent(curve["bd_rate"][metric]) for metric in METRICS),
            f"{curve['parameters']:,d}",
            "-" if curve["minutes"] is None else f"{curve['minutes']:,.1f}",
            f"{curve['bytes_trained']:,d}",
            f"{curve['bytes_stored']:,d}",
        ]
        for label, curve in curves.items()
    ]
    against = [f"BD-rate, {name}" for name in METRICS.values()]
    taken = ["trained parameters", "training minutes", "bytes of these", "bytes with the frozen codec"]
    lines = [
        f"Means over {images} image{'s' if images > 1 else ''} of {report['folder']}, by decoded files.",
        "",
        *table(headings, points),
        "",
        f"BD-rates are against {anchor}.",
        "",
        *table(["curve", *against, *taken], costs),
    ]
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f} %"
