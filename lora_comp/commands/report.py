import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from lora_comp import api
from lora_comp.codecs import CODECS, load_codecs
from lora_comp.data import load_data
from lora_comp.errors import ImageError, LoraCompError
from lora_comp.files import make_folder, write_file
from lora_comp.report.bdrate import Point, bd_rate
from lora_comp.report.bench import read_speeds, speed_table
from lora_comp.report.card import adapters_card, codec_card, codec_scores, network_card
from lora_comp.report.codecs import (
    classic_codecs,
    gains,
    mean_point,
    measure,
    psnr,
    published_curves,
    settings,
    to_bytes,
)
from lora_comp.report.plots import speed_plot
from lora_comp.report.summary import markdown, rates_markdown
from lora_comp.settings import argument, setting
from lora_comp.tasks import load_task
from lora_comp.weights import read_weights
from lora_comp.zoo import ROOT

Coder = Callable[[Tensor], tuple[int, float]]  # an image to its bytes and PSNR
CLASSIC = "of jpeg, webp, avif, jpeg2000 and avif444 (4:4:4, slowest: ten seconds an image); null: the first four"

console = Console()


@dataclass(frozen=True)
class TableConfig:
    results: str = argument("results.json of `lora-comp run`")


@dataclass(frozen=True)
class RatesConfig:
    results: list[str] = argument("results.json of runs, named by their folders")


@dataclass(frozen=True)
class BenchConfig:
    benchmarks: str = argument("FILE of `pytest benchmarks --benchmark-json FILE`")
    out: str | None = setting(None, "folder for bench.md and bench.png", path=True)


@dataclass(frozen=True)
class CodecsConfig:
    folder: str = argument("the images")
    codec: str | None = setting(None, "one of our codecs to set beside them, such as tic-v")
    out: str | None = setting(None, "JSON file for the curves and the figures of every image", path=True)
    card: str | None = setting(None, "Markdown file for the card of `codec`; its figures go beside it", path=True)
    weights: str = setting("default", "default: those of the package; a safetensors file", path=True)
    refine: int = setting(0, "steps of refinement of the latents for people, see docs/refinement.md", low=0)
    against: list[str] | None = setting(None, CLASSIC, filled=True)
    published: str | None = setting(
        None, "JSON file of curves on the same images, {NAME: {points: [[bpp, psnr]]}}", path=True
    )


@dataclass(frozen=True)
class CardsConfig:
    pass


def table(config: TableConfig) -> None:
    """Print the table of a run in Markdown.

    Examples:
      lora-comp report table results/cls-scenes-svd_lora/results.json
      lora-comp report table results/det/results.json > det.md
    """
    print(markdown(_summary(Path(config.results))), end="")


def rates(config: RatesConfig) -> None:
    """Print the BD-rates of several runs in Markdown.

    Examples:
      lora-comp report rates results/cls/results.json
      lora-comp report rates results/*/results.json > rates.md
    """
    runs = [Path(path) for path in config.results]
    print(rates_markdown({path.parent.name: _summary(path) for path in runs}), end="")


def bench(config: BenchConfig) -> None:
    """Print ours against named peers in Markdown, and plot it.

    Examples:
      lora-comp report bench bench.json
      lora-comp report bench bench.json out=results/bench
    """
    show_speeds(Path(config.benchmarks), Path(config.out) if config.out else None)


def codecs(config: CodecsConfig) -> None:
    """Measure JPEG, WebP, AVIF and JPEG 2000, and a codec of ours, on a folder of images.

    Examples:
      lora-comp report codecs KODAK out=kodak.json
      lora-comp report codecs KODAK codec=tic-v card=tic-v.md
      lora-comp report codecs KODAK codec=tic-v weights=tic-v.safetensors against=[avif,avif444] published=kodak.json
    """
    if config.card and not config.codec:
        raise LoraCompError("card= needs codec=: whose card it is")
    if config.card and (config.weights != "default" or config.refine):
        raise LoraCompError("card= is for plain files of the weights in the package: leave out weights= and refine=")
    folder, out = Path(config.folder), Path(config.out) if config.out else None
    report = compare_codecs(folder, config.codec, out, config.weights, config.against, config.published, config.refine)
    if config.card and config.codec:
        scores = _finite(codec_scores(config.codec, report, folder.name))
        _write_json(Path(config.card).with_suffix(".json"), scores)
        write_file(config.card, codec_card(scores).encode())


def cards(config: CardsConfig) -> None:
    """Write the cards of the zoo from the metadata and scores of its weights.

    Examples:
      lora-comp report cards
      python -m lora_comp.report cards
    """
    write_cards()


def show_speeds(benchmarks: Path, out: Path | None = None) -> None:
    speeds = read_speeds(benchmarks)
    table = speed_table(speeds)
    print(table, end="")
    if out:
        write_file(make_folder(out) / "bench.md", table.encode())
        speed_plot(speeds, out / "bench.png")


def write_cards() -> None:
    for path in sorted((ROOT / "codecs").glob("*.json")):
        write_file(path.with_suffix(".md"), codec_card(json.loads(path.read_text())).encode())
    for path in sorted((ROOT / "networks").glob("*.json")):
        write_file(path.with_suffix(".md"), network_card(json.loads(path.read_text())).encode())
    adapters = sorted((ROOT / "adapters").glob("*.safetensors"))
    if adapters:
        cards = [read_weights(path, "the adapter")[1] for path in adapters]
        write_file(ROOT / "adapters" / "adapters.md", adapters_card(cards).encode())


def _summary(path: Path) -> list[dict]:
    try:
        return json.loads(path.read_text())["summary"]
    except (OSError, ValueError, KeyError) as error:
        raise LoraCompError(f"{path} does not hold the results of a run: {error}") from None


def compare_codecs(
    folder: Path,
    codec: str | None = None,
    out: Path | None = None,
    weights: str = "default",
    against: Sequence[str] | None = None,
    published: str | None = None,
    refine: int = 0,
) -> dict:
    """Print and return the curves of conventional codecs, and of `codec`, over the readable images of a folder.

    refine: steps of refinement of every image of `codec`.
    against: names of conventional codecs; None for all but the slow ones.
    published: file of more curves of the same images, see `report.codecs.published_curves`.

    Returns "images" and "skipped" (counts), "curves" (per codec a list of setting, bpp, psnr: means over images),
    "bd_rate" (per codec and anchor, percent), "published" (of `codec`, per published curve), "gain_db" (per point of
    `codec`, dB above each anchor at equal bpp) and "records" (codec, setting, image, bytes, bpp, psnr). Raises
    LoraCompError for a folder, codec or file that is not there.
    """
    if out and not out.parent.is_dir():  # said now, not after minutes of coding
        raise LoraCompError(f"cannot write {out}: there is no folder {out.parent}")
    data = load_data("folder", path=folder)
    through: dict[tuple[str, int], Coder] = {
        (name, at): partial(measure, name, at)
        for name in (classic_codecs() if against is None else against)
        for at in settings(name)
    }
    others = published_curves(published) if published else {}
    if codec:
        through |= _ours(codec, weights, refine)
    for note in getattr(data, "notes", ()):
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    records, skipped = [], 0
    for i in track(range(len(data)), "coding", console=console, transient=True):
        try:
            sample = data[i]
        except ImageError as error:
            skipped += 1
            console.print(f"skipped: {error}", highlight=False, markup=False, soft_wrap=True)
            continue
        for (name, at), code in through.items():
            size, quality = code(sample.image)
            bpp = 8 * size / sample.image[0].numel()
            records.append(
                {"codec": name, "setting": at, "image": sample.name, "bytes": size, "bpp": bpp, "psnr": quality}
            )
    if not records:
        raise LoraCompError(f"none of the {skipped} images in {folder} can be read")
    curves = _curves(records)
    points = {name: [(row["bpp"], row["psnr"]) for row in rows] for name, rows in curves.items()}
    anchors = {name: curve for name, curve in points.items() if name != codec}
    report = {
        "images": len(data) - skipped,
        "skipped": skipped,
        "curves": curves,
        "bd_rate": {test: {name: bd_rate(anchors[name], curve) for name in anchors} for test, curve in points.items()},
        "gain_db": gains(points[codec], anchors) if codec else [],
        "published": {name: bd_rate(curve, points[codec]) for name, curve in others.items()} if codec else {},
        "records": records,
    }
    if out:
        _write_json(out, report)
    _print(report, codec)
    return report


def _ours(name: str, weights: str, refine: int) -> dict[tuple[str, int], Coder]:
    if name not in CODECS:
        raise LoraCompError(f"unknown codec {name!r}; available are {', '.join(CODECS)}")
    human = load_task("human") if refine else None

    def coder(codec: Any) -> Coder:
        def code(image: Tensor) -> tuple[int, float]:
            data = api.encode(image, codec, human, method="none", refine=refine).data
            return len(data), psnr(to_bytes(image), to_bytes(api.decode(data, codec)))

        return code

    codecs = load_codecs(name, CODECS[name].qualities, weights)
    return {(name, int(quality)): coder(codec) for quality, codec in codecs.items()}


def _curves(records: list[dict]) -> dict[str, list[dict]]:
    """Means over the images, per codec a list that follows its settings."""
    groups: dict[tuple[str, int], list[Point]] = {}
    for record in records:
        groups.setdefault((record["codec"], record["setting"]), []).append((record["bpp"], record["psnr"]))
    curves: dict[str, list[dict]] = {}
    for (name, at), points in groups.items():
        bpp, quality = mean_point(points)
        curves.setdefault(name, []).append({"setting": at, "bpp": bpp, "psnr": quality})
    return curves


def _print(report: dict, codec: str | None) -> None:
    anchors = list(next(iter(report["bd_rate"].values())))
    table = Table(
        "codec",
        "setting",
        "bpp",
        "PSNR dB",
        *[f"dB over {name}" for name in anchors if codec],
        title=f"means over {report['images']} images",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for name, rows in report["curves"].items():
        for i, row in enumerate(rows):
            above = [_signed(report["gain_db"][i][anchor], 2) for anchor in anchors] if name == codec else []
            table.add_row(
                name,
                str(row["setting"]),
                f"{row['bpp']:.3f}",
                f"{row['psnr']:.2f}",
                *above,
                end_section=row is rows[-1],
            )
    console.print(table)
    differences = Table(
        "BD-rate",
        *[f"over {name}" for name in anchors],
        title="rate at equal PSNR, percent",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for name, values in report["bd_rate"].items():
        differences.add_row(name, *[_signed(values[anchor], 1) for anchor in anchors])
    console.print(differences)
    if report["published"]:
        title = f"rate of {codec} at equal PSNR, percent"
        beside = Table("published curve", "BD-rate", title=title, box=box.SIMPLE_HEAD, padding=0)
        for name, value in report["published"].items():
            beside.add_row(name, _signed(value, 1))
        console.print(beside)
    if report["skipped"]:
        console.print(f"{report['skipped']} unreadable images skipped")


def _signed(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"


def _finite(value):
    """The same structure with None for inf and nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(path: Path, content: dict) -> None:
    write_file(path, json.dumps(_finite(content), indent=1, allow_nan=False).encode())
