import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import Progress
from yaml import YAMLError

from lora_comp.codecs import CODECS, load_codec
from lora_comp.data import load_data
from lora_comp.engine import start_engine
from lora_comp.errors import LoraCompError
from lora_comp.evaluate import Point, evaluate
from lora_comp.files import read_file, write_file
from lora_comp.methods import FitSettings, frozen_quality, load_method, method_of_adapter
from lora_comp.qualities import moved, quality_of
from lora_comp.report.card import weights_of
from lora_comp.report.curves import bd_rates, cost, markdown, point
from lora_comp.report.plots import curves_plot
from lora_comp.settings import Choice, argument, either, group, setting
from lora_comp.tasks import load_task
from lora_comp.weights import read_weights

KEYS = ("codec", "weights", "adapter", "quality")
LABEL = re.compile(r"\w[\w .+()-]{0,60}")  # of a curve: a folder has it too, and a cell of a table


@dataclass(frozen=True)
class CurvesConfig:
    folder: str = argument("the images")
    curves: str = argument("YAML file: the files of each curve by its label, see docs/alice.md")
    out: str | None = setting(None, "folder for files and results; null: results/NAME of the YAML file", path=True)
    against: str | None = setting(None, "the curve that BD-rates are against; null: the first")
    engine: Choice = group("lora_comp.engine", "default", "the machine, and test-time fine-tuning")


@dataclass(frozen=True)
class Place:
    """A point of a curve, before it is measured.

    weights: of the codec; None for those of the package. adapter: None for a point of the plain codec.
    quality: the one that is asked for, if any. own: that of the weights, if they say one.
    """

    codec: str
    weights: Path | None
    adapter: Path | None
    quality: float | None
    own: float | None

    def load(self, codecs: dict[tuple, Any], device: torch.device) -> Point:
        """The codec and the method; `codecs` keeps what is loaded."""
        method, given = "none", {}
        if self.adapter is not None:
            method, given = method_of_adapter(self.adapter), {"adapter": str(self.adapter)}
        at = frozen_quality(self.codec, method, **given) or self.quality or self.own
        if at is None:
            raise LoraCompError(f"{self.weights or 'the weights of the package'}: give quality= of this codec")
        key = self.codec, at, self.weights or "default"
        codec = codecs[key] = codecs.get(key) or load_codec(*key).to(device)
        loaded = load_method(method, codec, "human", **given)
        if self.quality is not None:
            codec, loaded = moved(codec, loaded, self.quality)
        return Point(codec, [loaded])

    def files(self, codec: Any) -> tuple[Path, Path | None]:
        """What was trained for it, and what that stands on. codec: the loaded one."""
        weights = self.weights or weights_of(self.codec, codec.quality)
        return (weights, None) if self.adapter is None else (self.adapter, weights)


def curves(config: CurvesConfig) -> None:
    """Code the images of a folder along rate curves, to real files, and compare the curves.

    A curve has a point for each rate: weights of their own, an adapter of frozen weights, or a quality. The folder
    `out` gets the files, curves.json, curves.md and curves.png, with bpp, PSNR and MS-SSIM, BD-rates, and what training
    and storing each curve takes. The same command resumes after a stop.

    Examples:
      lora-comp report curves KODAK stf-s.yaml
      lora-comp report curves KODAK stf-s.yaml against=separate out=results/stf-s
    """
    places, engine = read_curves(Path(config.curves)), config.engine.options
    anchor = config.against or next(iter(places))
    if anchor not in places:
        raise LoraCompError(f"against must be {either(list(places))}, not {anchor!r}")
    out = Path(config.out or Path("results", Path(config.curves).stem))
    if out.resolve().is_relative_to(Path(config.folder).resolve()):
        raise LoraCompError(f"the results would lie among the images, in {out}: name another folder with out=FOLDER")
    device, data, task = start_engine(engine), load_data("folder", path=config.folder), load_task("human")
    points = load(places, device)
    settings = FitSettings(engine.steps, engine.lr or task.lr, engine.seed, engine.recipe, engine.tile)
    console, found = Console(), dict[str, list[dict]]()
    for label, line in points.items():
        for i, one in enumerate(line):
            with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
                folder = out / "points" / f"{label}-{i + 1}"
                records = evaluate(data, [one], task, settings, folder, progress, engine.batch).requested
            if not records:
                raise LoraCompError(f"none of the images in {config.folder} can be read")
            row = point(records, quality_of(one.codec, one.methods[0]))
            found.setdefault(label, []).append(row)
            figures = f"{row['bpp']:.4f} bpp, {row['psnr']:.3f} dB, MS-SSIM {row['ms_ssim']:.5f}"
            console.print(f"{label}, quality {row['quality']:g}: {figures}", highlight=False, markup=False)
    rates = bd_rates(found, anchor)
    report = {
        "folder": Path(config.folder).resolve().name,
        "images": found[anchor][0]["count"],
        "against": anchor,
        "curves": {
            label: {"points": rows, "bd_rate": rates[label], **cost(*files_of(places[label], points[label]))}
            for label, rows in found.items()
        },
    }
    write_file(out / "curves.json", json.dumps(report, indent=1, allow_nan=False).encode())
    write_file(out / "curves.md", markdown(report).encode())
    curves_plot([row | {"method": label} for label, rows in found.items() for row in rows], out / "curves.png")
    console.print(f"curves.json, curves.md and curves.png in {out}:\n", highlight=False, markup=False, soft_wrap=True)
    print(markdown(report), end="")


def load(places: Mapping[str, list[Place]], device: torch.device) -> dict[str, list[Point]]:
    """All points, so that a file that does not fit is said before minutes of coding."""
    codecs: dict[tuple, Any] = {}
    points: dict[str, list[Point]] = {}
    for label, line in places.items():
        for place in line:
            try:
                points.setdefault(label, []).append(place.load(codecs, device))
            except LoraCompError as error:
                raise LoraCompError(f"curve {label}: {error}") from None
    return points


def files_of(places: list[Place], points: list[Point]) -> tuple[list[Path], list[Path]]:
    """The files of a curve, each once: those that were trained for it, and those that these stand on."""
    pairs = [place.files(one.codec) for place, one in zip(places, points, strict=True)]
    frozen = list(dict.fromkeys(path for _, path in pairs if path is not None))
    return [path for path in dict.fromkeys(path for path, _ in pairs) if path not in frozen], frozen


def read_curves(path: Path) -> dict[str, list[Place]]:
    """The points of every curve of a file, by label. Raises LoraCompError for a file that is not of this form."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.create(read_file(path).decode()), resolve=True)
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        raise LoraCompError(f"{path} is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise LoraCompError(f"{path} has no curves; one is LABEL: {{weights: FILE, adapter: [FILE, FILE]}}")
    made = {}
    for label, given in content.items():
        try:
            made[str(label)] = _places(str(label), given, path.parent)
        except LoraCompError as error:
            raise LoraCompError(f"{path}: curve {label}: {error}") from None
    return made


def _places(label: str, given: Any, folder: Path) -> list[Place]:
    """The points of a curve: what is a list has a value for each of them, and what is not is the same for all."""
    if not LABEL.fullmatch(label):
        raise LoraCompError("a label has letters, digits, and inside spaces and .+()-, at most 61")
    if not isinstance(given, dict) or set(given) - set(KEYS):
        raise LoraCompError(f"a curve has {', '.join(KEYS)}, not {given if given else 'nothing'}")
    lists = {len(value) for value in given.values() if isinstance(value, list)}
    if len(lists) > 1 or 0 in lists:
        raise LoraCompError(f"lists have one value for each point, not {' and '.join(map(str, sorted(lists)))} values")
    count = max(lists, default=1)
    columns = {key: value if isinstance(value, list) else [value] * count for key, value in given.items()}
    return [_place(folder, **dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _place(folder: Path, codec: Any = None, weights: Any = None, adapter: Any = None, quality: Any = None) -> Place:
    for name, value in (("codec", codec), ("weights", weights), ("adapter", adapter)):
        if not isinstance(value, str | None):
            raise LoraCompError(f"{name} must be text, not {value!r}")
    if isinstance(quality, bool) or not isinstance(quality, int | float | None):
        raise LoraCompError(f"quality must be a number, not {quality!r}")
    paths = [None if one is None else folder / one for one in (weights, adapter)]
    card = {} if paths[0] is None else read_weights(paths[0], "the curve")[1]
    named = codec or card.get("codec")
    if named not in CODECS:
        raise LoraCompError(f"codec must be {either(list(CODECS))}, not {named}")
    return Place(named, paths[0], paths[1], quality, card.get("quality"))
