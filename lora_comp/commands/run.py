import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lora_comp import api
from lora_comp.codecs import CODECS, load_codec, load_codecs
from lora_comp.config import changed
from lora_comp.data import load_data
from lora_comp.engine import start_engine
from lora_comp.errors import LoraCompError
from lora_comp.evaluate import Point, evaluate, samples
from lora_comp.methods import FitSettings, Method, annealed, frozen_quality, load_method
from lora_comp.qualities import moved
from lora_comp.report.plots import caption, score_plot, side_by_side
from lora_comp.report.summary import rate_point, table
from lora_comp.settings import Choice, group, setting
from lora_comp.target import Target, check_alone, ends_for, target_of
from lora_comp.tasks import load_task


@dataclass(frozen=True)
class RunConfig:
    quality: list[float] | None = setting(
        None, "rate points, 1 for the fewest bits; null: all of the codec, unless sizes are set", low=0, filled=True
    )
    bpp: list[float] | None = setting(
        None, "rate points as sizes of each file in bits per pixel, in place of quality", above=0, filled=True
    )
    bytes: list[int] | None = setting(None, "rate points as sizes of each file in bytes", low=1, filled=True)
    psnr: list[float] | None = setting(None, "rate points as PSNRs of each image in dB", above=0, filled=True)
    max_bytes: list[int] | None = setting(
        None, "rate points as sizes that no file exceeds, each of the best quality", low=1, filled=True
    )
    roi: str | None = setting(
        None,
        "region of interest: boxes, of the objects that the task finds, or an image, white where it matters",
        path=True,
    )
    refine: int = setting(
        0, "steps of annealed rounding that refine the latents of each method; with none, of a method `refined`", low=0
    )
    out: str | None = setting(
        None,
        "folder for files and results; null: results/TASK-DATA-METHOD, and what else is not the default",
        path=True,
    )
    codec: Choice = group("lora_comp.codecs", "tic-v", "the frozen codec")
    method: Choice = group("lora_comp.methods", "svd_lora", "how the codec is adapted; several as [svd_lora,lora]")
    task: Choice = group("lora_comp.tasks", "cls", "what must survive compression, or several as [cls,human]")
    data: Choice = group("lora_comp.data", "scenes", "the images")
    engine: Choice = group("lora_comp.engine", "default", "test-time fine-tuning")


def run(config: RunConfig) -> None:
    """Code every image of a data set with the plain and the adapted codec, decode every file, and score the images.

    The folder `out` gets files/*.lcz, results.json, score.png and pictures.png. The same command resumes after a stop.

    Examples:
      lora-comp run task=cls data.limit=3
      lora-comp run task=det data=coco data.path=COCO quality=[2,4] engine=published
      lora-comp run codec=tic-v task=human method=none data=folder data.path=PHOTOS bpp=[0.1,0.25,0.5]
    """
    console, engine, targets = Console(), config.engine.options, targets_of(config)
    device = start_engine(engine)
    out = Path(config.out) if config.out else default_folder(config)
    images = getattr(config.data.options, "path", None)
    if images and out.resolve().is_relative_to(Path(images).resolve()):
        raise LoraCompError(f"the results would lie among the images, in {out}: name another folder with out=FOLDER")
    data = load_data(**config.data.given())
    task = load_task(**config.task.given()).to(device)
    moving, others = chosen_methods(config)
    codecs = {q: codec.to(device) for q, codec in codecs_of(config, targets, moving, others).items()}
    methods = {q: load_methods(others, codec, task.key, config.refine) for q, codec in codecs.items()}
    points = [Point(codec, [None, *methods[q].values()], targets.get(q)) for q, codec in codecs.items()]
    for given, quality in moving:
        codec = codecs.get(quality) or load_codec(quality=quality, **config.codec.given()).to(device)
        points += moving_points(config, targets, codec, *load_methods([given], codec, task.key, config.refine).values())
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        settings = FitSettings(engine.steps, engine.lr or task.lr, engine.seed, engine.recipe, engine.tile)
        records = evaluate(data, points, task, settings, out, progress, engine.batch, config.roi)
    if not records.requested:
        raise LoraCompError("none of the images could be read")
    results = records.results()
    show(results, console)
    draw(results, data, codecs, methods, task, out)
    made = [name for name in ("results.json", "score.png", "pictures.png") if (out / name).exists()]
    console.print(f"\n{len(records.requested)} files and {', '.join(made)} in {out}", soft_wrap=True)


def targets_of(config: RunConfig) -> dict[Any, Target]:
    """The targets that are set in place of qualities, by their names in records."""
    sizes: dict[str, Any] = {
        "bpp": config.bpp,
        "bytes": config.bytes,
        "psnr": config.psnr,
        "max_bytes": config.max_bytes,
    }
    check_alone(quality=config.quality, **sizes)
    targets = [target_of(**{kind: value}) for kind, values in sizes.items() for value in values or ()]
    return {str(target): target for target in targets if target}


def chosen_methods(config: RunConfig) -> tuple[list[tuple[dict, float]], list[dict]]:
    """What `load_method` takes: for methods that move a frozen codec, with its quality, and for the others."""
    chosen = config.method.given()
    several = list(chosen.get("parts", {"": chosen}).values())
    frozen = [frozen_quality(config.codec.name, **given) for given in several]
    moving = [(given, quality) for given, quality in zip(several, frozen, strict=True) if quality is not None]
    return moving, [given for given, quality in zip(several, frozen, strict=True) if quality is None]


def codecs_of(config: RunConfig, targets: dict[Any, Target], moving: list, others: list) -> dict[Any, Any]:
    """The codec of each rate point that is evaluated plain, by its quality or its target as records name it."""
    given, entry = config.codec.given(), CODECS[config.codec.name]
    qualities = config.quality or entry.qualities
    if not entry.variable and moving and not others:  # the weights that are there are those of the frozen codec
        frozen = [quality for _, quality in moving]
        qualities, targets = [] if targets else [q for q in qualities if q in frozen], {}
    if not targets:
        return load_codecs(qualities=qualities, **given)
    codec = load_codec(quality=entry.qualities[-1], **given)
    for target in targets.values():
        ends_for(target, codec, None)
    return dict.fromkeys(targets, codec)


def moving_points(config: RunConfig, targets: dict[Any, Target], codec: Any, method: Any) -> list[Point]:
    """The rate points of a method that moves its codec."""
    if targets:
        return [Point(codec, [method], target) for target in targets.values()]
    lowest, highest = method.qualities
    within = [quality for quality in CODECS[codec.name].qualities if lowest <= quality <= highest]
    return [Point(codec, [moved(codec, method, quality)[1]]) for quality in config.quality or within]


def default_folder(config: RunConfig) -> Path:
    """The folder of a run that names none: one for each network, data set, codec, method and region, so that no run
    replaces the results of another. Rate points, `engine` and `data.limit` share a folder."""
    names = [config.task.name, config.data.name, config.method.name]
    if config.codec.name != RunConfig.codec:
        names.append(config.codec.name)
    shared = ("quality", "bpp", "bytes", "psnr", "max_bytes", "out", "data.limit")
    own = {name: value for name, value in changed(config).items() if name not in shared and name[:7] != "engine."}
    if own:
        values = [one for value in own.values() for one in (value if isinstance(value, list) else [value])]
        words = [re.sub(r"[^\w.-]+", "_", Path(one).stem)[:40].strip("_") for one in values if isinstance(one, str)]
        places = [os.path.abspath(one) if isinstance(one, str) and Path(one).exists() else one for one in values]
        names += [*words[:3], f"{zlib.crc32(repr([*own, *places]).encode()):08x}"]
    return Path("results", "-".join(names))


def load_methods(several: list[dict], codec, task: str, refine: int) -> dict[str, Method]:
    """The methods to evaluate beside the plain codec, by name, with `refine` steps of refinement each."""
    found = [annealed(load_method(codec=codec, task=task, **given), refine) for given in several]
    return {method.name: method for method in found if method is not None}


def show(results: dict, console: Console) -> None:
    """The table of every image, and of the means."""
    targets = any("target" in record for record in results["records"])
    names = (*["target"] * targets, "quality", "image", "method", "bytes", "bpp", "psnr", "score")
    images = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        images.add_column(name, justify="left" if name in ("image", "method") else "right")
    digits = {"bpp": ".3f", "psnr": ".2f", "score": ".3f", "bytes": ",d"}
    for record in sorted(results["records"], key=lambda r: 0 if targets else r["quality"]):
        cells = (f"{record[n]:{digits.get(n, '')}}" if n in record else "-" for n in names)  # features have no psnr
        images.add_row(*map(escape, cells))
    console.print(images)
    console.print(table(results["summary"]))
    if results["skipped"]:
        console.print(f"{len(results['skipped'])} unreadable images were skipped:")
        for reason in results["skipped"]:
            console.print(f"  {reason}", soft_wrap=True, markup=False)


def draw(results: dict, data, codecs: dict, methods: dict, task, out: Path) -> None:
    """score.png, and pictures.png: original, plain and adapted of the image that adapting helped most."""
    score_plot(results["summary"], out / "score.png")
    records = results["records"]
    beside_plain = {name for at in methods.values() for name, m in at.items() if getattr(m, "base", None) is None}
    guarded = [r for r in records if r["loss_before"] is not None and "psnr" in r and r["method"] in beside_plain]
    adapted = [r for r in guarded if r["loss_after"] < r["loss_before"]]
    if not adapted:
        return
    best = max(adapted, key=lambda r: (r["loss_before"] - r["loss_after"]) / r["loss_before"])
    at = rate_point(best)
    plain = next(r for r in records if (r["method"], r["image"], rate_point(r)) == ("none", best["image"], at))
    sample = next(sample for sample in samples(data) if sample.name == best["image"])
    answer = task.answer(sample.image)
    captions = [f"answer: {answer}" if answer else best["image"]]
    before, after = (
        api.decode((out / r["file"]).read_bytes(), codecs[at], methods[at].get(r["method"])).cpu()
        for r in (plain, best)
    )
    for record, decoded in ((plain, before), (best, after)):
        captions.append(f"quality {record['quality']}: " + caption(record, task.answer(decoded)))
    boxes = (
        [
            [one["bbox"] for one in task.detections(image) if one["score"] >= task.score_threshold]
            for image in (sample.image, before, after)
        ]
        if hasattr(task, "detections")
        else ((), (), ())
    )
    bits = bits_per_pixel((out / best["file"]).read_bytes(), codecs[at], before.shape[-2:])
    side_by_side(sample.image, before, after, captions, out / "pictures.png", boxes, bits)


def bits_per_pixel(data: bytes, codec, size: Sequence[int]) -> np.ndarray | None:
    """Where the bits of a file go, float (H, W); None for a codec that does not say."""
    if not hasattr(codec.coder(), "bits"):
        return None
    stride = codec.latent_stride
    return np.kron(api.bit_map(data, codec), np.full((stride, stride), 1 / stride**2))[: size[0], : size[1]]
