"""Settings as dataclasses: each field carries the help, the range and the kind of its value.

    @dataclass(frozen=True)
    class LowRankOptions:
        rank: int = setting(4, "rank of a seeded adapter", low=1, high=255)

A field is annotated with int, float, bool, str, a list of one of these, or one of these `| None`; with Any where the
code that uses the value checks it. These dataclasses are valid Hydra structured configs. `lora_comp.config` sets and
checks them by the words of a command; `lora_comp.usage` prints them for `--help`.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from lora_comp.errors import LoraCompError

REQUIRED = "???"  # the default of a setting that must be given, as OmegaConf spells it
NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The settings of what has none."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a group was set to: a name of its registry, and the dataclass of what can be set of it.

    Where the options have a `name` too, that one counts: `task=own task.name=MODULE:CLASS`.
    """

    name: str
    options: Any

    def given(self) -> dict[str, Any]:
        """Name and options as keywords, those of parts as dictionaries: for `load_task`, `load_method`, `load_data`."""
        return {"name": self.name} | {
            field.name: _plain(getattr(self.options, field.name)) for field in dataclasses.fields(self.options)
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: part.given() for name, part in value.items()}
    return dict(vars(value)) if dataclasses.is_dataclass(value) else value


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field says of its value.

    low, high: inclusive bounds of a number, or of each number of a list. above: an exclusive lower bound.
    step: integers are multiples of it. choices: the texts there are. filled: a list has at least one item.
    pattern: a regular expression that the whole text matches; it needs `expected` for people.
    path: a path, or a name in its place; its words are taken literally.
    argument: given by its position, without its name.
    group: a module whose `choices()` are the names there are, each with its options: a dataclass or its instance.
    expected: replaces the description of the value in messages.
    """

    help: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    step: int = 1
    choices: Sequence[str] = ()
    pattern: str = ".*"
    filled: bool = False
    path: bool = False
    argument: bool = False
    group: str = ""
    expected: str = ""


def setting(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field with a `Setting`: its default, its help, and the other attributes of `Setting`."""
    metadata = {"setting": Setting(help, **facts)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def argument(help: str, **facts: Any) -> Any:
    """A field given by its position: a path that is required. One of type list[str] takes all that follow."""
    return setting(REQUIRED, help, path=True, argument=True, **facts)


def group(module: str, choice: str, help: str) -> Any:
    """A field that is one of the `choices()` of a module, which by default is `choice`."""
    return setting(choice, help, group=module)


def setting_of(field: dataclasses.Field) -> Setting:
    return field.metadata.get("setting", Setting())


def kinds(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation lets a value be, NoneType among them for `| None`."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def item_kind(hint: Any) -> Any:
    """The type of the items where the annotation is a list, else None."""
    lists = [kind for kind in kinds(hint) if typing.get_origin(kind) is list]
    return typing.get_args(lists[0])[0] if lists else None


def expected(hint: Any, about: Setting) -> str:
    """What a value must be, in words."""
    if about.expected:
        return about.expected
    item = item_kind(hint)
    kind = item or next(kind for kind in kinds(hint) if kind is not types.NoneType)
    one = "a path" if about.path else NAMES.get(kind, "a value") + _range(about)
    names = [*(about.choices or [one]), *["a list of these as [A,B]"] * bool(item)]
    return either(names + ["null"] * (types.NoneType in kinds(hint)))


def either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _range(about: Setting) -> str:
    text = f" > {about.above:g}" if about.above is not None else ""
    if about.low is not None and about.high is not None:
        text = f" from {_number(about.low)} to {_number(about.high)}"
    elif about.low is not None:
        text = f" >= {_number(about.low)}"
    return text + (f", a multiple of {about.step}" if about.step > 1 else "")


def _number(value: float) -> str:
    if isinstance(value, int) and value >= 2**16 and value & (value + 1) == 0:
        return f"2^{value.bit_length()} - 1"
    return str(value)


def check(name: str, value: Any, hint: Any, about: Setting) -> None:
    """Raise LoraCompError for a value that its field does not take."""
    if not any(_fits(value, kind, about) for kind in kinds(hint)):
        raise LoraCompError(f"{name} must be {expected(hint, about)}, not {shown(value)}")


def shown(value: Any) -> str:
    """A value as a message spells it."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)


def _fits(value: Any, kind: Any, about: Setting) -> bool:
    if kind is Any:
        return True
    if kind is types.NoneType:
        return value is None
    if typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        return isinstance(value, list) and len(value) >= about.filled and all(_fits(v, item, about) for v in value)
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return number and math.isfinite(value) and _in_range(value, about)
    if not isinstance(value, kind):
        return False
    if kind is not str:
        return True
    return (not about.choices or value in about.choices) and bool(re.fullmatch(about.pattern, value, re.S))


def _in_range(value: float, about: Setting) -> bool:
    return (
        (about.low is None or value >= about.low)
        and (about.high is None or value <= about.high)
        and (about.above is None or value > about.above)
        and (about.step == 1 or value % about.step == 0)
    )
