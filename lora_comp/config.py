"""The configuration of a command: Hydra groups under conf/, changed by `group=choice` and `key=value` words."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_comp.errors import LoraCompError


def _whole(least: int, most: float = math.inf, step: int = 1) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, int) and not isinstance(value, bool) and least <= value <= most and value % step == 0
    )


def _text(value: object) -> bool:
    return isinstance(value, str)


def _or_null(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or fits(value)


def _quality(value: object) -> bool:
    return all(map(_whole(0), value)) and len(value) > 0 if isinstance(value, ListConfig) else _whole(0)(value)


def _rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _shares(value: object) -> bool:
    return isinstance(value, ListConfig) and all(_rate(share) or share == 0 for share in value)


def _size(value: object) -> bool:
    return isinstance(value, (str, ListConfig)) or _whole(0)(value)


# What a value must be, by the name of its setting; the others are text.
TEXT = ("text (put ./ before a path that looks like a number)", _text)
EXPECTED: dict[str, tuple[str, Callable[[object], bool]]] = {
    **dict.fromkeys(
        ("codec.weights", "task.weights", "method.adapter", "data.path"), ("a path or null", _or_null(_text))
    ),
    "task.layers": (
        "a list of layers, as [layer3,layer4], or null",
        _or_null(lambda value: isinstance(value, ListConfig)),
    ),
    "task.input": (
        "a YAML file, or what is told as task.input.size=[352,352]",
        lambda value: _text(value) or isinstance(value, DictConfig),
    ),
    "task.shares": ("a list of numbers from 0 on, or null", lambda value: value is None or _shares(value)),
    "task.name": ("a task's name, or MODULE:CLASS with task=own", _text),
    "task.parts": ("tasks, given as task=[cls,det]", lambda value: isinstance(value, DictConfig)),
    "quality": ("a rate point or a list of them, as 2 or [1,2]", _quality),
    "data.limit": ("a whole number from 1 on, or null", _or_null(_whole(1))),
    "data.seed": ("a whole number from 0 to 2^32 - 1", _whole(0, 2**32 - 1)),
    "data.size": ("a side, [height,width] or odd", _size),
    "engine.steps": ("a whole number from 0 on", _whole(0)),
    "engine.lr": ("a number above 0, or null", _or_null(_rate)),
    "engine.recipe": ("latents, adapter or published", lambda value: value in ("latents", "adapter", "published")),
    "engine.seed": ("a whole number from 0 to 2^63 - 1", _whole(0, 2**63 - 1)),
    "engine.tile": ("a whole number from 128 on, in steps of 128", _whole(128, step=128)),
    "engine.batch": ("a whole number from 1 on", _whole(1)),
    "engine.threads": ("a whole number from 1 on, or null", _or_null(_whole(1))),
    "engine.device": ("cpu, cuda or cuda:N", lambda value: str(value).startswith(("cpu", "cuda"))),
    "images": ("a list of folders, as [FOLDER,FOLDER]", lambda value: isinstance(value, ListConfig)),
    "minutes": ("a number above 0, or null", _or_null(_rate)),
    "lr": ("a number above 0, or null", _or_null(_rate)),
    **dict.fromkeys(("steps", "batch", "threads"), ("a whole number from 1 on, or null", _or_null(_whole(1)))),
    "roi": ("boxes, a path or null", _or_null(_text)),
    "into": ("a path or null", _or_null(_text)),
    "device": ("cpu, cuda or null", lambda value: value in ("cpu", "cuda", None)),
    "method.rank": ("a whole number from 1 to 255", _whole(1, 255)),
    "method.alpha": ("a whole number from 1 to 255", _whole(1, 255)),
    "method.seed": ("a whole number from 0 to 127", _whole(0, 127)),
    "method.exponent": ("a whole number from 0 to 24", _whole(0, 24)),
    "method.mlp": ("true or false", lambda value: isinstance(value, bool)),
}


def load_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration `name` with the given words applied. Raises LoraCompError for a word that does not fit."""
    if added := [word for word in overrides if word.startswith(("+", "~"))]:
        raise LoraCompError(f"{added[0]} adds or removes a setting; what there is can only be changed: KEY=VALUE")
    words = _several(overrides)
    try:
        with initialize_config_dir(str(Path(__file__).parent / "conf"), version_base="1.3"):
            config = compose(name, words)
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        line = " ".join(str(error).split())
        raise LoraCompError(re.split(r" To append| Config search path| See https", line)[0]) from None
    check(config)
    return config


def _several(words: Sequence[str]) -> list[str]:
    """Words with `task=[cls,det]`, and `task.det.network=` beside it, as Hydra's for the task "several"."""
    listed = next((found for word in words if (found := re.fullmatch(r"task=\[(.+)\]", word))), None)
    if listed is None:
        return list(words)
    names = [name.strip() for name in listed[1].split(",")]
    own = re.compile(rf"^task\.({'|'.join(map(re.escape, names))})\.")
    rest = [own.sub(r"task.parts.\1.", word) for word in words if word != listed[0]]
    return ["task=several", f"task.name='{'+'.join(names)}'", *(f"+task@task.parts.{n}={n}" for n in names), *rest]


def check(config: DictConfig) -> None:
    """Raise LoraCompError for a value of the wrong kind; whether a name is known, its own module says."""
    for group, values in config.items():
        for key, value in values.items() if isinstance(values, DictConfig) else [("", values)]:
            name = f"{group!s}.{key!s}" if key else str(group)
            what, fits = EXPECTED.get(name, TEXT)
            if not fits(value):
                raise LoraCompError(f"{name} must be {what}, not {value!r}")


def start_engine(engine: DictConfig) -> torch.device:
    """Set the number of threads; the device to work on. Raises LoraCompError for a device that is not there."""
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    try:
        device = torch.device(engine.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LoraCompError(f"engine.device={engine.device} cannot be used: {str(error).splitlines()[0]}") from None
    return device
