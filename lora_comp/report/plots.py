"""Plots: score over rate, an original beside its plain and adapted reconstructions, and benchmark times."""

import io
import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, ScalarFormatter
from torch import Tensor

from lora_comp.files import write_file
from lora_comp.report.bench import Speeds, three_digits
from lora_comp.report.summary import PLAIN, lower_is_better, score_name

# Okabe and Ito's palette, which colour-blind readers can distinguish; the markers distinguish lines in greyscale.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LABELS = {
    "psnr": "PSNR (dB)",
    "ms_ssim": "MS-SSIM",
    "ms_ssim_db": "MS-SSIM (dB)",
    "top1": "top-1 accuracy",
    "agreement": "agreement with the original",
    "feature_distance": "feature distance",
    "score": "score",
}
_TINT = "#555555"


def score_plot(rows: Sequence[dict], path: str | os.PathLike) -> None:
    """Plot the score over rate, one line per method, from the rows of `summary`; the suffix sets the file format.

    A second panel shows the feature distance if the rows have it, else MS-SSIM or PSNR, unless that is the score.
    Raises LoraCompError if the file cannot be written.
    """
    score = score_name(rows)
    second = next(
        (
            name
            for name in ("feature_distance", "ms_ssim", "psnr")
            if name != score and any(name in row for row in rows)
        ),
        None,
    )
    tasks = ", ".join(dict.fromkeys(f"task {row['task']}, codec {row['codec']}" for row in rows))
    _over_rate(rows, [("score", score)] + ([(second, second)] if second else []), tasks, path)


def curves_plot(rows: Sequence[dict], path: str | os.PathLike) -> None:
    """Plot PSNR and MS-SSIM in dB over rate, one line per "method", from rows with "count", "bpp", "psnr" and
    "ms_ssim_db". Raises LoraCompError if the file cannot be written.
    """
    own = [row | {"task": "", "codec": ""} for row in rows]
    _over_rate(own, [(name, name) for name in ("psnr", "ms_ssim_db")], "real files", path)


def _over_rate(rows: Sequence[dict], panels: Sequence[tuple[str, str]], title: str, path: str | os.PathLike) -> None:
    """A panel for each metric, the key of the rows that has it and its name, over rate."""
    figure = Figure(figsize=(5.2 * len(panels), 4.1), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    for i, (key, name) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        _lines(axes, rows, key)
        label = _LABELS.get(name, name.replace("_", " "))
        axes.set_ylabel(f"{label}, {'lower' if lower_is_better(name) else 'higher'} is better")
    count = max(row["count"] for row in rows)
    figure.suptitle(f"{title}: mean of {count} image{'s' if count > 1 else ''}", fontsize=11)
    _save(figure, path, dpi=150)


def _lines(axes: Axes, rows: Sequence[dict], key: str) -> None:
    """Plot one metric of the rows over rate."""
    several = len({(row["task"], row["codec"]) for row in rows}) > 1
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        method = "plain codec" if row["method"] == PLAIN else row["method"]
        name = f"{row['task']} {row['codec']} {method}" if several else method
        lines.setdefault(name, [])
        if key in row and math.isfinite(row[key]):
            lines[name].append((row["bpp"], row[key]))
    for i, (name, points) in enumerate(lines.items()):
        if points:
            axes.plot(
                *zip(*sorted(points), strict=True),
                label=name,
                color=_COLOURS[i % 7],
                marker=_MARKERS[i % 7],
                markersize=6,
                linewidth=1.8,
                markeredgecolor="white",
                markeredgewidth=0.7,
            )
    values = [value for points in lines.values() for _, value in points]
    if values and max(values) - min(values) < 1e-3 * max(1e-9, *map(abs, values)):
        middle = (max(values) + min(values)) / 2  # otherwise the axis would magnify rounding errors
        axes.set_ylim(middle - 0.05 * max(1, abs(middle)), middle + 0.05 * max(1, abs(middle)))
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.margins(0.1)
    axes.set_xlabel("rate (bits per pixel)")
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def caption(record: dict, answer: str | None = None) -> str:
    """Caption of a coded image: bytes, bpp, PSNR, and the task network's prediction or else the score."""
    last = f"answer: {answer}" if answer is not None else f"score {record['score']:.3f}"
    return f"{record['bytes']:,} bytes, {record['bpp']:.3f} bpp\nPSNR {record['psnr']:.2f} dB\n{last}"


def side_by_side(
    original: Tensor,
    plain: Tensor,
    adapted: Tensor,
    captions: Sequence[str],
    path: str | os.PathLike,
    boxes: Sequence[Sequence[Sequence[float]]] = ((), (), ()),
    bpp: np.ndarray | None = None,
) -> None:
    """Plot the original, plain and adapted images side by side, with error maps below the latter two, and below the
    first where the bits of the adapted file go.

    original, plain, adapted: float (3, H, W) in [0, 1]. captions: one text per image. boxes: x, y, width and height in
    pixels of the objects detected in each. bpp: float (H, W), bits per pixel at each place. Images more than twice as
    wide as high are stacked instead.
    Raises LoraCompError if the file cannot be written.
    """
    shapes = [tuple(image.shape) for image in (original, plain, adapted)]
    if len(set(shapes)) != 1 or len(shapes[0]) != 3 or shapes[0][0] != 3 or len(captions) != 3:
        raise ValueError(f"three images (3, H, W) of one size and three captions are needed, not {shapes}")
    _, height, width = shapes[0]
    images = [
        image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy() for image in (original, plain, adapted)
    ]  # (H, W, 3) each
    errors = [255 * np.abs(image - images[0]).mean(axis=2) for image in images[1:]]  # (H, W) each
    brightest = max(1.0, float(np.quantile(errors, 0.995)))  # a common scale, so that both can be compared
    titles = ("original", "plain codec", "adapted")
    cell = _cell_size(height, width)
    stacked = width > 2 * height
    layout = _Sheet(cell, columns=2 if stacked else 3, rows=3 if stacked else 2)
    for i, image in enumerate(images):
        axes = layout.show(image, *((i, 0) if stacked else (0, i)), titles[i], captions[i])
        for x, y, *size in boxes[i]:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), *size, fill=False, edgecolor=_COLOURS[4], linewidth=2))
    maps = [
        (error / brightest, f"error, {title}", f"mean over RGB; black: 0,\nwhite: {brightest:.0f} of 255 or more")
        for error, title in zip(errors, titles[1:], strict=True)
    ]
    if bpp is not None:
        most = max(float(bpp.max()), 1e-6)
        maps.insert(0, (bpp / most, "bits, adapted", f"black: 0,\nwhite: {most:.2f} bpp"))
    for i, drawn in enumerate(maps, start=3 - len(maps)):
        layout.show(drawn[0], *((i, 1) if stacked else (1, i)), *drawn[1:])
    _save(layout.figure, path, dpi=layout.dpi)


def _cell_size(height: int, width: int) -> tuple[int, int]:
    """Displayed height and width in pixels: small images are enlarged by an integer, large ones reduced to 768.

    An aspect ratio beyond 1:12 is displayed as 1:12.
    """
    longest = max(height, width)
    scale: float = max(1, 512 // longest) if longest < 768 else 768 / longest
    shown = max(height * scale, width * scale / 12), max(width * scale, height * scale / 12)
    return round(shown[0]), round(shown[1])


class _Sheet:
    """A grid of images of one size, each with a title above and a caption below, placed to the pixel."""

    dpi = 100
    gap = 24
    title = 30
    text = 72

    def __init__(self, cell: tuple[int, int], columns: int, rows: int):
        self.cell = cell
        self.step = max(cell[1], 270) + self.gap  # room for the caption of a small image
        self.row = cell[0] + self.title + self.text
        self.size = (rows * self.row + self.gap, columns * self.step + self.gap)  # (H, W)
        self.figure = Figure(figsize=(self.size[1] / self.dpi, self.size[0] / self.dpi), dpi=self.dpi)

    def show(self, image: np.ndarray, row: int, column: int, title: str, caption: str) -> Axes:
        height, width = self.size
        left, top = self.gap + column * self.step, self.gap / 2 + row * self.row + self.title
        box = (left / width, 1 - (top + self.cell[0]) / height, self.cell[1] / width, self.cell[0] / height)
        axes = self.figure.add_axes(box)
        axes.imshow(image, aspect="auto", vmin=0, vmax=1, cmap="gray", interpolation="auto")
        axes.set_axis_off()
        self.figure.text(left / width, 1 - (top - 8) / height, title, fontsize=11, fontweight="bold", va="bottom")
        letters = (self.step - self.gap) // 8  # average width in pixels of a 10 pt letter at 100 dpi
        lines = [textwrap.shorten(line, letters, placeholder="...") for line in caption.splitlines()]
        self.figure.text(
            left / width,
            1 - (top + self.cell[0] + 8) / height,
            "\n".join(lines),
            fontsize=10,
            va="top",
            color=_TINT,
            linespacing=1.25,
            parse_math=False,
        )
        return axes


def speed_plot(speeds: Speeds, path: str | os.PathLike) -> None:
    """Plot a bar per claim and peer: the peer's time over ours, on a log axis.

    Raises LoraCompError if the file cannot be written.
    """
    bars = [(claim, peer, ratio) for claim in speeds.claims for peer, ratio in claim.ratios.items()]
    peers = list(dict.fromkeys(peer for _, peer, _ in bars))
    lowest, highest = min(1.0, *(ratio for *_, ratio in bars)), max(1.0, *(ratio for *_, ratio in bars))
    figure = Figure(
        figsize=(9, 1.2 + 0.25 * (len(bars) + 0.6 * len(speeds.claims))),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
    )
    axes = figure.add_subplot()
    ticks, place = [], 0.0
    for claim in speeds.claims:
        ticks.append(place + (len(claim.ratios) - 1) / 2)
        for peer, ratio in claim.ratios.items():
            axes.barh(place, ratio - 1, left=1, height=0.84, color=_COLOURS[peers.index(peer) % 7])
            axes.annotate(
                f"{three_digits(ratio)}× {peer}",
                (max(ratio, 1), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                parse_math=False,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
            place += 1
        place += 0.6  # gap between claims
    axes.set_yticks(ticks, [textwrap.fill(claim.name, 40) for claim in speeds.claims], parse_math=False)
    axes.set_ylim(place - 0.8, -0.8)  # the first claim on top
    axes.set_xscale("log")
    axes.set_xlim(lowest if lowest == 1 else lowest / 1.1, highest * max(1.6, highest / lowest) ** 0.4)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvline(1, color=_TINT, linewidth=1)
    axes.set_xlabel("how many times faster than the peer (the peer's median time / ours)")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.supxlabel(speeds.machine, fontsize=9, color=_TINT, parse_math=False)
    _save(figure, path, dpi=150)


def bits_plot(bits: np.ndarray, size: tuple[int, int], stride: int, path: str | os.PathLike) -> None:
    """Plot where the bits of a file go, from `api.bit_map`; the suffix sets the file format.

    Args:
        size: (H, W) of the image in pixels, to which the map is cropped.
        stride: pixels per position of the map.
    Raises LoraCompError if the file cannot be written.
    """
    height, width = size
    rows, columns = (-(-side // stride) for side in size)
    scale = 6 / max(size)
    figure = Figure(
        figsize=(max(1.5, width * scale) + 1.2, max(1.5, height * scale)),
        layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05),
    )
    axes = figure.add_subplot()
    drawn = axes.imshow(
        bits[:rows, :columns],
        "viridis",
        vmin=0,
        extent=(0, columns * stride, rows * stride, 0),
        interpolation="nearest",
    )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    figure.colorbar(drawn, ax=axes, label=f"bits per {stride}x{stride} pixels")
    _save(figure, path, dpi=150)


def _save(figure: Figure, path: str | os.PathLike, dpi: int) -> None:
    FigureCanvasAgg(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=Path(path).suffix[1:] or None, dpi=dpi, facecolor="white")
    write_file(path, drawn.getvalue())
