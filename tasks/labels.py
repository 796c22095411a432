"""The classes of a data set among those of a network: found by their names, never by their ranks."""

import difflib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from lora_comp.data.sample import Sample
from lora_comp.errors import LoraCompError, first_line

CLASSES_HELP = "what the network calls the data's classes, as {tabby: cat}, or a YAML file; null: much the same"
HOW = "task.classes= takes a table of names"
WNID = re.compile(r"(n\d{8})(?!\d)")  # of ImageNet; folders may have a name behind it
SIGNS = re.compile(r"[\W_]+")
# What Pascal VOC, COCO and others call the same.
SYNONYMS = (
    ("aeroplane", "airplane"),
    ("motorbike", "motorcycle"),
    ("sofa", "couch"),
    ("tvmonitor", "tv", "television"),
    ("hairdrier", "hairdryer"),
    ("donut", "doughnut"),
    ("cellphone", "mobilephone"),
)
SAME = {word: group[0] for group in SYNONYMS for word in group}


class Matched(NamedTuple):
    """indexes: for each class of a data set that of the network, or None. ranks: they were taken in their order."""

    indexes: tuple[int | None, ...]
    ranks: bool = False

    @property
    def known(self) -> list[int]:
        return [index for index in self.indexes if index is not None]


def folded(name: str) -> str:
    """A name without case, spaces, underscores, hyphens and other signs."""
    return SIGNS.sub("", unicodedata.normalize("NFKC", name).casefold())


def _synonym(name: str) -> str:
    return SAME.get(folded(name), folded(name))


# From the strictest on: what names are converted to, and whether all names of a class count or the first alone.
LEVELS: tuple[tuple[Callable[[str], str], bool], ...] = (
    (str, False),
    (str, True),
    (folded, False),
    (folded, True),
    (_synonym, True),
)


class Labels:
    """Finds the classes of data sets among a network's.

    A class is found by its name as it is written, then by other names that the network's class has (of ImageNet's:
    synonyms and the WordNet id), then without regard to case, spaces and signs, then by `SYNONYMS`. Of a name that fits
    two classes it must be clear which, as of "crane" beside "crane bird". Folders named 0 to n - 1 are the n classes of
    a network. Where a network does not name its classes, as many of a data set are taken in their order, if sorting
    their names as text and as numbers gives one.

    network: has `classes`, and `aliases` if its classes have several names.
    table: names of a data set's classes and what the network calls them, or their indices, None where it has none: a
        mapping, text as `{tabby: cat}`, or a YAML file.
    count: the number of the network's classes, where it does not name them.
    """

    def __init__(
        self, network, table: Mapping | str | os.PathLike | None = None, count: Callable[[], int | None] | None = None
    ):
        self.network, self.table, self.count = network, read_table(table), count
        names = getattr(network, "aliases", ()) or [(name,) for name in network.classes]
        self.names: list[tuple[str, ...]] = [tuple(each) for each in names]
        self._found: dict[tuple[str, ...], Matched] = {}
        self._levels: dict[int, dict[str, set[int]]] = {}

    def of(self, names: Sequence[str]) -> Matched:
        """Raises LoraCompError for a table that does not fit the data set or the network."""
        key = tuple(names)
        if key not in self._found:
            self._found[key] = self._match(key)
        return self._found[key]

    def relabelled(self, names: Sequence[str]) -> tuple[int | None, ...] | None:
        """The indices where they are not those of the data set's own labels, all of the network's."""
        if not names:
            return None
        indexes, ranks = self.of(names)
        return None if ranks or indexes == tuple(range(len(self.names))) else indexes

    def _match(self, names: tuple[str, ...]) -> Matched:
        given = self._given(names)
        if given:
            others = [name for name in names if name not in given]
            found = dict(zip(others, self._indexes(others), strict=True)) | given
            return Matched(tuple(found[name] for name in names))
        number = self._number()
        if len(names) == number:
            if not self.names:
                plain, natural = sorted(names), sorted(names, key=_natural)
                return Matched(tuple(range(number)), True) if plain == natural else Matched((None,) * number)
            if all(name.isdecimal() for name in names) and sorted(map(int, names)) == list(range(number)):
                return Matched(tuple(map(int, names)))
        return Matched(self._indexes(names))

    def _number(self) -> int | None:
        return len(self.names) or (self.count() if self.count else None)

    def _fits(self, name: str) -> set[int]:
        """The classes of the network that a name fits on the strictest level where it fits any."""
        wnid = WNID.match(name)
        for level, (convert, _) in enumerate(LEVELS):
            word = wnid[1] if wnid and level else convert(name)
            if word and (fits := self._level(level).get(word)):
                return fits
        return set()

    def _level(self, level: int) -> dict[str, set[int]]:
        """The network's classes by their names as a level converts them."""
        if level not in self._levels:
            convert, every = LEVELS[level]
            known = self._levels[level] = defaultdict(set)
            for index, names in enumerate(self.names):
                for name in names if every else names[:1]:
                    known[convert(name)].add(index)
        return self._levels[level]

    def _indexes(self, names: Sequence[str]) -> tuple[int | None, ...]:
        """The class that each name fits, if that is one alone, or one alone that no other name has."""
        fits = [self._fits(name) for name in names]
        taken = {next(iter(one)) for one in fits if len(one) == 1}
        left = [one - taken if len(one) > 1 else one for one in fits]
        return tuple(next(iter(one)) if len(one) == 1 else None for one in left)

    def _given(self, names: Sequence[str]) -> dict[str, int | None]:
        """What the table says of the data set's classes."""
        given: dict[str, int | None] = {}
        spelled = {folded(name): name for name in names if folded(name)}
        for own, other in self.table.items():
            name = own if own in names else spelled.get(folded(own), "")
            if not name:
                raise LoraCompError(f"task.classes: {own!r} is no class of the data{_near(own, names)}")
            index = None if other is None else self._indexes([other])[0]
            if index is None and other is not None:
                index = int(other) if other.isdecimal() else None
                number = self._number()
                if index is None or (number and index >= number):
                    known = [name for each in self.names for name in each]
                    numbers = f"; it has 0 to {number - 1}" if number and not known else ""
                    raise LoraCompError(
                        f"task.classes: the network {self.network.name} has no class {other!r}"
                        f"{_near(other, known)}{numbers}"
                    )
            given[name] = index
        return given


def unmatched(sample: Sample, matched: Matched) -> str:
    """The names of the classes that the network does not have, five at most, of those that are present."""
    present = sample.present or range(len(sample.classes))
    missing = [" ".join(sample.classes[i].split()) for i in present if matched.indexes[i] is None]
    return ", ".join(missing[:5]) + (f" and {len(missing) - 5} others" if len(missing) > 5 else "")


def read_table(given: Mapping | str | os.PathLike | None) -> dict[str, str | None]:
    """The table of names of `Labels`, all as text."""
    if given is None:
        return {}
    where = "task.classes"
    table: object = given
    if not isinstance(given, Mapping):
        text = str(given)
        try:
            if not text.lstrip().startswith(("{", "[")):
                where = text
                text = Path(where).read_text(encoding="utf-8-sig")
            table = yaml.load(text, yaml.BaseLoader)  # which reads `no` and `0` as text, and makes no objects
        except (OSError, UnicodeDecodeError) as error:
            raise LoraCompError(f"cannot read {where}: {getattr(error, 'strerror', '') or 'it is no text'}") from None
        except yaml.YAMLError as error:
            raise LoraCompError(f"{where} is not YAML: {first_line(error)}") from None
    if not isinstance(table, Mapping) or any(isinstance(name, (Mapping, list)) for name in table.values()):
        raise LoraCompError(f"{where} must be a table of names, as {{tabby: cat, lynx: null}}")
    return {str(own): None if other in (None, "null", "~", "") else str(other) for own, other in table.items()}


def _natural(name: str) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
