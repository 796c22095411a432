"""What `--help` prints of a command: its documentation, and its settings from their dataclasses."""

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from lora_comp.config import Entry, choose, entries, with_choices
from lora_comp.settings import REQUIRED, expected, item_kind, setting_of, shown

INDENT = 26


def usage(command: str, schema: type, documentation: str) -> str:
    """The help of a command."""
    fields = dataclasses.fields(schema)
    own = dict(entries(with_choices(schema(), {})))
    places = [name for name, entry in own.items() if entry.about.argument]
    plain = [f.name for f in fields if not setting_of(f).group and f.name not in places]
    groups = [field for field in fields if setting_of(field).group]
    words = [f"{name.upper()}{' ...' * (item_kind(own[name].hint) is not None)}" for name in places]
    lines = [" ".join(["usage: lora-comp", command, *words, *["[SETTING=VALUE ...]"] * bool(plain or groups)])]
    lines += ["", inspect.cleandoc(documentation)]
    if places or plain:
        lines.append("")
    lines += [line for name in places for line in _row(name.upper(), own[name].about.help)]
    lines += [line for name in plain for line in _setting(name, own[name])]
    for field in groups:
        lines += ["", *_group(field)]
    return "\n".join(lines)


def _group(field: dataclasses.Field) -> Iterator[str]:
    """A group's choices, and their settings: of choices with the same dataclass once, with what the others change."""
    group = field.name
    module = setting_of(field).group
    choices = {name: choose(group, module, name).options for name in import_module(module).choices()}
    yield from _row(f"{group}={field.default}", f"{setting_of(field).help}: {', '.join(choices)}")
    first: dict[type, str] = {}
    for name, settings in choices.items():
        first.setdefault(type(settings), name)
    for kind, name in first.items():
        own = dict(entries(choices[name], f"{group}."))
        alike = [other for other, settings in choices.items() if type(settings) is kind]
        if own:
            yield f"  with {group}={' or '.join(alike)}:"
        for key, entry in own.items():
            yield from (f"  {row}" for row in _setting(key, entry))
        for other in alike[1:]:
            changed = [
                f"{key}={_default(entry.value)}"
                for key, entry in entries(choices[other], f"{group}.")
                if entry.value != own[key].value
            ]
            if changed:
                yield f"    {group}={other} has {' '.join(changed)}"


def _setting(name: str, entry: Entry) -> list[str]:
    nested = dataclasses.is_dataclass(entry.value)
    value = "" if nested or entry.value == REQUIRED else _default(entry.value)
    kind = expected(entry.hint, entry.about)
    obvious = nested or entry.about.path or kind in ("text", "text or null", "a value")
    return _row(f"{name}={value}", entry.about.help + ("" if obvious else f" ({kind})"))


def _default(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return value if isinstance(value, str) else shown(value)


def _row(name: str, text: str) -> list[str]:
    """A name, and what it means in a column beside it."""
    width = max(shutil.get_terminal_size().columns - 2, 60)
    lines = textwrap.wrap(text, width - INDENT - 2) or [""]
    first = [f"  {name:{INDENT}}{lines[0]}"] if len(name) < INDENT else [f"  {name}", " " * (INDENT + 2) + lines[0]]
    return first + [" " * (INDENT + 2) + line for line in lines[1:]]
