"""From the words of a command to its settings: `key=value`, `group=choice` (Hydra overrides) and paths by position.

    compose(EncodeConfig, ["cat.png", "cat.lcz", "task=det", "task.network=a=b.onnx"], "encode")

- The schema is a dataclass of `lora_comp.settings`; the choices of a group are what its module's `choices()` gives, so
  that nothing here names a method, codec, task or data set.
- Values have Hydra's override grammar, but for paths: those are taken as they stand, without one pair of quotes around.
  `null` is None; `[A,B]` is a list; `${other.setting}` is filled in.
- `--key value`, `--key=value` and, for what is true or false, `--key` are `key=value`. After `--` all words are paths.
- A group takes a list, as `task=[cls,det]`, where its module has `combine`; `task.det.network=` is then a part's.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from lora_comp.errors import LoraCompError
from lora_comp.settings import REQUIRED, Choice, Setting, check, either, expected, item_kind, setting_of

Schema = TypeVar("Schema")
NAME = re.compile(r"[A-Za-z_][\w-]*(\.[\w+-]+)*")
ITEM = re.compile(r"\s*('[^']*'|\"[^\"]*\"|[^,]*?)\s*(?:,|$)")


class Entry(NamedTuple):
    """A field of the settings. value: its default; a dataclass where there are settings below it."""

    value: Any
    hint: Any
    about: Setting


def compose(schema: type[Schema], words: Sequence[str], command: str) -> Schema:
    """The settings that the words say. Raises LoraCompError, in one line, for a word or a value that does not fit."""
    given = _as_pairs(words, schema)
    settings = with_choices(schema(), dict(pair for pair in given if isinstance(pair, tuple)))
    return _Words(settings, command).apply(given)


def with_choices(settings: Schema, chosen: dict[str, str]) -> Schema:
    """The settings with each group replaced by its chosen, or default, dataclass."""
    changes = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        if module := setting_of(field).group:
            changes[field.name] = choose(field.name, module, chosen.get(field.name, getattr(settings, field.name)))
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]


def choose(group: str, module: str, choice: str) -> Choice:
    """The choice of a group with its options, or of several where its module has `combine`."""
    source = import_module(module)
    known = source.choices()
    if listed := re.fullmatch(r"\[(.+)\]", choice):
        names = [name.strip() for name in listed[1].split(",")]
        if not hasattr(source, "combine"):
            raise LoraCompError(f"{group} is one of {', '.join(known)}, not a list")
        return Choice("+".join(names), source.combine({name: _choice(group, known, name) for name in names}))
    return _choice(group, known, choice)


def _choice(group: str, known: Mapping[str, Any], choice: str) -> Choice:
    if choice not in known:
        near = _intended(group, known, choice) or suggestion(choice, known)
        raise LoraCompError(f"{group} must be {either(sorted(known))}, not {choice!r}{near}")
    options = known[choice]
    return Choice(choice, options() if isinstance(options, type) else options)


def _intended(group: str, known: Mapping[str, Any], choice: str) -> str:
    """How a list of choices, or a path in the place of a choice, is written; nothing for another word."""
    if set(choice.split(",")) <= set(known):
        return f"; a list is written {group}=[{choice}]"
    if "/" in choice or "." in choice:
        takes = _with_setting(known, lambda field: setting_of(field).path and field.default == REQUIRED)
        return "".join(f"; a path is given with {group}.{field}={choice} to {either(n)}" for field, n in takes.items())
    return ""


def _with_setting(known: Mapping[str, Any], wanted: Callable[[dataclasses.Field], bool]) -> dict[str, list[str]]:
    """The wanted settings of a group's choices, and the choices that have each."""
    found: dict[str, list[str]] = {}
    for name, options in known.items():
        for field in dataclasses.fields(options):
            if wanted(field):
                found.setdefault(field.name, []).append(name)
    return found


def suggestion(word: str, known: Collection[str]) -> str:
    """A question after names whose last part is near that of the word, or nothing."""
    last = {name: name.rsplit(".", 1)[-1] for name in known}
    own = word.rsplit(".", 1)[-1]
    parts = difflib.get_close_matches(own, set(last.values()), 3)
    near = [name for name in known if last[name] in parts]
    near.sort(key=lambda name: (last[name] != own, -difflib.SequenceMatcher(None, word, name).ratio()))
    return f"; did you mean {either(near[:3])}?" if near else ""


def entries(settings: Any, prefix: str = "") -> Iterator[tuple[str, Entry]]:
    """All fields by their full names. The parts of a combined group stand beside its own settings."""
    if isinstance(settings, Choice):
        yield from entries(settings.options, prefix)
        return
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if isinstance(value, dict):
            for part, own in value.items():
                yield from entries(own, f"{prefix}{part}.")
            continue
        yield name, Entry(value, hints[field.name], setting_of(field))
        if dataclasses.is_dataclass(value):
            yield from entries(value, f"{name}.")


def leaves(settings: Any) -> dict[str, Entry]:
    """The settings without others below them."""
    return {name: entry for name, entry in entries(settings) if not dataclasses.is_dataclass(entry.value)}


def changed(settings: Any) -> dict[str, Any]:
    """The settings whose values are not the defaults of what was chosen, by their full names."""
    chosen = {
        field.name: f"[{','.join(parts)}]" if (parts := getattr(choice.options, "parts", None)) else choice.name
        for field in dataclasses.fields(settings)
        if isinstance(choice := getattr(settings, field.name), Choice)
    }
    defaults = leaves(with_choices(type(settings)(), chosen))
    return {
        name: entry.value
        for name, entry in leaves(settings).items()
        if name not in defaults or entry.value != defaults[name].value
    }


def _as_pairs(words: Sequence[str], schema: type) -> list[tuple[str, str] | str]:
    """Each word as a name and a value, or as it stands where it has not that form."""
    hints, pairs, rest = typing.get_type_hints(schema), list[tuple[str, str] | str](), list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*pairs, *map(_Path, rest)]
        name, equals, value = word.partition("=")
        if option := re.fullmatch(r"--([A-Za-z][\w.-]*)", name):
            name = option[1].replace("-", "_")
            if not equals and hints.get(name) is bool:
                value = "true"
            elif not equals:
                if not rest:
                    raise LoraCompError(f"{word} needs a value")
                value = rest.pop(0)
            pairs.append((name, value))
        elif equals and NAME.fullmatch(name):
            pairs.append((name, value))
        else:
            pairs.append(word)
    return pairs


class _Path(str):
    """A word after `--`."""


class _Words:
    """The words of one command over the settings that its chosen groups have."""

    def __init__(self, settings: Any, command: str):
        self.settings, self.command = settings, command
        self.known = leaves(settings)
        self.whole = {name: entry for name, entry in entries(settings) if name not in self.known and entry.about.path}
        self.groups = [field.name for field in dataclasses.fields(settings) if setting_of(field).group]
        self.arguments = [name for name, entry in self.known.items() if entry.about.argument]
        self.values: dict[str, Any] = {}

    def apply(self, given: Sequence[tuple[str, str] | str]) -> Any:
        for pair in given:
            if isinstance(pair, tuple):
                self._set(*pair)
            else:
                self._position(pair)
        for name, entry in self.known.items():
            self.values.setdefault(name, entry.value)
        for name, entry in self.known.items():
            if self.values[name] == REQUIRED:
                raise LoraCompError(self._missing(name, entry))
        self._interpolate()
        for name, entry in self.known.items():
            check(name, self.values[name], entry.hint, entry.about)
        return _rebuilt(self.settings, self.values)

    def _set(self, name: str, text: str) -> None:
        if name in self.groups:
            return
        if name in self.known:
            self.values[name] = parse(name, text, self.known[name])
        elif name in self.whole:
            self._set_whole(name, text)
        elif self._free_argument() and not suggestion(name, self.known):
            self._position(_Path(f"{name}={text}"))
        else:
            raise LoraCompError(self._unknown(name))

    def _set_whole(self, name: str, text: str) -> None:
        """A file in place of the settings below a name, or `{key: value}` for some of them."""
        if re.fullmatch(r"\{.*\}", text):
            for key, value in parse(name, text, Entry(None, Any, Setting())).items():
                if f"{name}.{key}" not in self.known:
                    raise LoraCompError(self._unknown(f"{name}.{key}"))
                self.values[f"{name}.{key}"] = value
            return
        self.values[name] = parse(name, text, self.whole[name])
        self.known = {key: entry for key, entry in self.known.items() if not key.startswith(f"{name}.")}
        self.known[name] = self.whole[name]

    def _free_argument(self) -> str | None:
        """The next argument without a value; one that takes several is never full."""
        free = (name for name in self.arguments if name not in self.values or item_kind(self.known[name].hint))
        return next(free, None)

    def _position(self, word: str) -> None:
        name = self._free_argument()
        changed = None if isinstance(word, _Path) else re.fullmatch(r"(\+\+?|~)[\w.@]+(=.*)?", word)
        if changed and (changed[2] or not name):
            raise LoraCompError(f"{word} adds or removes a setting; what there is can only be changed: KEY=VALUE")
        if name is None:
            raise LoraCompError(f"{self.command} takes no word {word!r}: settings are KEY=VALUE")
        if item_kind(self.known[name].hint):
            self.values.setdefault(name, []).append(str(word))
        else:
            self.values[name] = str(word)

    def _missing(self, name: str, entry: Entry) -> str:
        if entry.about.argument:
            return f"{self.command} needs {name.upper()}; see lora-comp {self.command} --help"
        return f"{name} must be given: {entry.about.help}"

    def _unknown(self, name: str) -> str:
        head, dot, _ = name.partition(".")
        where = f"{head}={getattr(self.settings, head).name}" if dot and head in self.groups else self.command
        near = suggestion(name, [*self.known, *self.groups])
        if dot and head in self.groups:
            field = next(f for f in dataclasses.fields(self.settings) if f.name == head)
            others = import_module(setting_of(field).group).choices()
            for choices in _with_setting(others, lambda field: field.name == name[len(head) + 1 :]).values():
                near = f"; {head}={either(choices)} has it"
        return f"{where} has no setting {name!r}" + (near or f"; lora-comp {self.command} --help lists them")

    def _interpolate(self) -> None:
        open_ = [name for name, value in self.values.items() if isinstance(value, str) and "${" in value]
        if not open_:
            return
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        tree = OmegaConf.create()
        try:
            names = {f"{group}.name": getattr(self.settings, group).name for group in self.groups}
            for name, value in (names | self.values).items():
                OmegaConf.update(tree, name, value)
            self.values |= {name: OmegaConf.select(tree, name) for name in open_}
        except OmegaConfBaseException as error:
            raise LoraCompError(str(error).splitlines()[0]) from None


def parse(name: str, text: str, entry: Entry) -> Any:
    """A value from its text."""
    many = item_kind(entry.hint) is not None
    if entry.about.path:
        if text == "null":
            return None
        if (many or entry.hint is Any) and (listed := re.fullmatch(r"\[(.*)\]", text)):
            return [_unquoted(item) for item in ITEM.findall(listed[1]) if item]
        value: Any = _unquoted(text)
    else:
        value = _grammar(name, text, entry)
    if not many or value is None:
        return value
    values = value if isinstance(value, list) else [value]
    names = item_kind(entry.hint) is str  # and a name may be a number, as those of the layers of an nn.Sequential
    return [str(one) if names and type(one) in (int, float) else one for one in values]


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _grammar(name: str, text: str, entry: Entry) -> Any:
    """A value by Hydra's override grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"value={text}")
    except HydraException:
        raise LoraCompError(f"{name} must be {expected(entry.hint, entry.about)}, not {text!r}") from None
    if override.is_sweep_override():
        hint = f"; a list is written {name}=[{text}]" if item_kind(entry.hint) else ""
        raise LoraCompError(f"{name} must be {expected(entry.hint, entry.about)}, not {text!r}{hint}")
    return override.value()


def _rebuilt(settings: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """The dataclass with the values of its fields, and of those below."""
    if isinstance(settings, Choice):
        return Choice(settings.name, _rebuilt(settings.options, values, prefix))
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if name in values:
            changes[field.name] = values[name]
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _rebuilt(value, values, f"{name}.")
        elif isinstance(value, dict):
            changes[field.name] = {part: _rebuilt(own, values, f"{prefix}{part}.") for part, own in value.items()}
    return dataclasses.replace(settings, **changes)
