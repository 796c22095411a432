"""python -m lora_comp.run task=cls: adapt to every image of a data set, and set it beside the plain codec."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lora_comp.config import load_config, start_engine
from lora_comp.errors import LoraCompError
from lora_comp.program import report_errors

USAGE = """usage: python -m lora_comp.run [task=cls] [data=scenes] [data.limit=3] [quality=[2]] [out=FOLDER] ...

What can be set, and its defaults:
"""


@report_errors
def main(words: Sequence[str]) -> None:
    if "--help" in words or "-h" in words:
        from omegaconf import OmegaConf

        print(USAGE + OmegaConf.to_yaml(load_config("run", [])))
        return
    run(load_config("run", words), Console())


def run(config, console: Console) -> None:
    from lora_comp.codecs import load_codec
    from lora_comp.data import load_data
    from lora_comp.evaluate import Point, evaluate
    from lora_comp.methods import FitSettings, load_method
    from lora_comp.tasks import load_task

    device = start_engine(config.engine)
    data = load_data(**config.data)
    task = load_task(**config.task).to(device)
    qualities = [config.quality] if isinstance(config.quality, int) else list(config.quality)
    codecs = {q: load_codec(config.codec.name, q, config.codec.weights).to(device) for q in qualities}
    methods = {q: load_method(codec=codec, task=task.key, **config.method) for q, codec in codecs.items()}
    points = [Point(codec, [None] if methods[q] is None else [None, methods[q]]) for q, codec in codecs.items()]
    engine = config.engine
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    out = Path(config.out)
    with Progress(*columns, console=console) as progress:
        settings = FitSettings(engine.steps, engine.lr or task.lr, engine.seed, engine.recipe, engine.tile)
        records = evaluate(data, points, task, settings, out, progress, engine.batch, config.roi)
    if not records.wanted:
        raise LoraCompError("none of the images could be read")
    results = records.results()
    show(results, console)
    draw(results, data, codecs, methods, task, out)
    console.print(f"\n{len(records.wanted)} files and results.json, score.png, pictures.png in {out}", soft_wrap=True)


def show(results: dict, console: Console) -> None:
    """The table of every image, and of the means."""
    from rich.markup import escape
    from rich.table import Table

    from lora_comp.report.summary import table

    names = ("quality", "image", "method", "bytes", "bpp", "psnr", "score")
    images = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        images.add_column(name, justify="left" if name in ("image", "method") else "right")
    digits = {"bpp": ".3f", "psnr": ".2f", "score": ".3f", "bytes": ",d"}
    for record in sorted(results["records"], key=lambda r: r["quality"]):
        images.add_row(*(escape(f"{record[n]:{digits.get(n, '')}}") for n in names))
    console.print(images)
    console.print(table(results["summary"]))
    if results["skipped"]:
        console.print(f"{len(results['skipped'])} unreadable images were skipped:")
        for reason in results["skipped"]:
            console.print(f"  {reason}", soft_wrap=True, markup=False)


def draw(results: dict, data, codecs: dict, methods: dict, task, out: Path) -> None:
    """score.png, and pictures.png: original, plain and adapted of the image that adapting helped most."""
    from lora_comp import api
    from lora_comp.evaluate import samples
    from lora_comp.report.plots import caption, score_plot, side_by_side

    score_plot(results["summary"], out / "score.png")
    records = results["records"]
    adapted = [r for r in records if r["adapted"]]
    if not adapted:
        return
    best = max(adapted, key=lambda r: (r["loss_before"] - r["loss_after"]) / r["loss_before"])
    plain = next(r for r in records if r["method"] == "none" and all(r[k] == best[k] for k in ("image", "quality")))
    quality = best["quality"]
    sample = next(sample for sample in samples(data) if sample.name == best["image"])
    answer = task.answer(sample.image)
    captions = [f"answer: {answer}" if answer else best["image"]]
    before, after = (
        api.decode((out / r["file"]).read_bytes(), codecs[quality], methods.get(quality)).cpu() for r in (plain, best)
    )
    for record, decoded in ((plain, before), (best, after)):
        captions.append(f"quality {quality}: " + caption(record, task.answer(decoded)))
    boxes = (
        [
            [one["bbox"] for one in task.detections(image) if one["score"] >= task.score_threshold]
            for image in (sample.image, before, after)
        ]
        if hasattr(task, "detections")
        else ((), (), ())
    )
    side_by_side(sample.image, before, after, captions, out / "pictures.png", boxes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
