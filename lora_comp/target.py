"""A size or a PSNR that is asked for, and the quality of a codec of variable rate that meets it.

The size of a plain file rises with quality, and a file takes a fraction of a second, so its quality is found by search.
An adapted file takes a fit. Adaptation changes the size by a factor, and the PSNR by an amount, that change slowly with
quality, but for a few percent of noise: with those of the last fit, the plain files predict the quality of the next
one, whose file is to be a little too large. Its latents are then moved towards their means until it is not, which takes
little time and lowers the objective. Two fits are usual. Measurements are in docs/rate.md.
"""

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from lora_comp.bitstream import SIXTEENTHS
from lora_comp.codecs import CODECS
from lora_comp.errors import LoraCompError, LoraCompWarning
from lora_comp.qualities import ends
from lora_comp.settings import either

UNITS = {"bpp": "bpp", "bytes": "bytes", "psnr": "dB"}
SIZE_TOLERANCE = math.log(1.02)
PSNR_TOLERANCE = 0.1  # dB
FITS = 5  # of an adapted file, at most
TRIM, TRIMS = 0.125, 128  # the latents of an adapted file are moved by at most this, in so many places


@dataclass(frozen=True)
class Target:
    """What a file has to meet.

    kind: "bpp", "bytes" or "psnr" (of the decoded image, in dB); None for the quality of the codec.
    value: what is asked for of this kind.
    max_bytes: the size that the file must not exceed.
    """

    kind: str | None = None
    value: float = 0
    max_bytes: int | None = None

    def size(self, pixels: int) -> float:
        """The bytes that "bpp" or "bytes" asks for, of an image of so many pixels."""
        return self.value * pixels / 8 if self.kind == "bpp" else self.value

    def near(self, found: float) -> bool:
        """Whether a file with this bpp, bytes or PSNR, by the kind, is as near as was promised."""
        if self.kind == "psnr":
            return abs(found - self.value) <= PSNR_TOLERANCE
        return self.kind is None or abs(math.log(found / self.value)) <= SIZE_TOLERANCE

    def __str__(self) -> str:
        parts = {self.kind: self.value, "max_bytes": self.max_bytes}
        return " ".join(f"{kind}={value:.10g}" for kind, value in parts.items() if kind and value is not None)


def target_of(
    bpp: float | None = None, bytes: int | None = None, psnr: float | None = None, max_bytes: int | None = None
) -> Target | None:
    """The target that is set, if any. Raises LoraCompError for two of the first three, and for numbers <= 0."""
    given = {k: v for k, v in {"bpp": bpp, "bytes": bytes, "psnr": psnr}.items() if v is not None}
    check_alone(**given)
    for name, value in (given | ({} if max_bytes is None else {"max_bytes": max_bytes})).items():
        if not 0 < value < math.inf:
            raise LoraCompError(f"{name} must be a number > 0, not {value}")
    for kind, value in given.items():
        return Target(kind, value, max_bytes)
    return None if max_bytes is None else Target(max_bytes=max_bytes)


def check_alone(**given: Any) -> None:
    """Raise LoraCompError if more than one is not None."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise LoraCompError(f"{' and '.join(names)} exclude each other: set one")


def ends_for(target: Target, codec: Any, method: Any) -> tuple[float, float]:
    """The lowest and the highest quality between which a target is met. Raises LoraCompError for a codec whose rate
    points have weights of their own, with a method that does not move it."""
    found = ends(codec, method)
    if found is None:
        variable = [f"codec={name}" for name, spec in CODECS.items() if spec.variable]
        own = [f"{quality:g}" for quality in CODECS[codec.name].qualities]
        raise LoraCompError(
            f"{target} needs any quality, which {either([*variable, 'method=calice'])} has; {codec.name} has quality "
            f"{either(own)}"
        )
    return found


class Level(NamedTuple):
    """What is compared of a file. size: logarithm of its bytes. value: the same, or its PSNR in dB, or its place."""

    value: float
    size: float


class Search:
    """The search for the quality of an image. A place is a quality in sixteenths.

    Args:
        qualities: the lowest and the highest.
        quality: what a target without kind asks for.
        pixels: of the image.
        plain: called with a quality, returns the plain file, or that of a method which is not fitted to images.
        psnr: called with a file, returns the PSNR of its image in dB.
    """

    def __init__(
        self,
        target: Target,
        qualities: tuple[float, float],
        quality: float,
        pixels: int,
        plain: Callable[[float], bytes],
        psnr: Callable[[bytes], float],
    ):
        self.target, self.pixels, self.psnr = target, pixels, psnr
        self.places = round(qualities[0] * SIXTEENTHS), round(qualities[1] * SIXTEENTHS)
        self.plain = functools.cache(lambda place: self.level(plain(place / SIXTEENTHS), place))
        self.most = math.inf if target.max_bytes is None else math.log(target.max_bytes)
        self.aim = Level(0.25 if target.kind == "psnr" else math.log(1.06), math.log(1.06))  # of fits before `trim`
        self.tolerance = {None: 0.0, "psnr": PSNR_TOLERANCE}.get(target.kind, SIZE_TOLERANCE)
        if target.kind is None:
            self.wanted = quality * SIXTEENTHS
        else:
            self.wanted = target.value if target.kind == "psnr" else math.log(target.size(pixels))

    def level(self, data: bytes, place: int) -> Level:
        size = math.log(len(data))
        if self.target.kind is None:
            return Level(place, size)
        return Level(self.psnr(data) if self.target.kind == "psnr" else size, size)

    def of_plain(self) -> float | None:
        """The quality of the plain file; None if even the smallest exceeds `max_bytes`."""
        place = self.find()
        return None if place is None else place / SIXTEENTHS

    def of_fits(self, fit: Callable[[float], Any]) -> Any:
        """The best of the adapted files that `fit` returns for qualities; None if all exceed `max_bytes`.

        fit: called with a quality, returns an `api.Coded` on which `trim` was tried.
        """
        fits: dict[int, tuple[Level, Any]] = {}
        place: int | None = self.find(Level(-self.aim.value, -self.aim.size)) or self.places[0]
        while place is not None and place not in fits and len(fits) < FITS:
            coded = fit(place / SIXTEENTHS)
            level, plain = self.level(coded.data, place), self.plain(place)
            fits[place] = level, coded
            if self.met(level):
                break
            change = level.value - plain.value - self.aim.value, level.size - plain.size - self.aim.size
            place = self.between({at: self.excess(one) for at, (one, _) in fits.items()}) or self.find(Level(*change))
        within = [one for one in fits.values() if one[0].size <= self.most]
        return min(within, key=lambda one: abs(one[0].value - self.wanted))[1] if within else None

    def excess(self, level: Level) -> float:
        """By how much a file is above the target, or above the most that it may have."""
        return max(level.value - self.wanted if self.target.kind else -math.inf, level.size - self.most)

    def between(self, fits: Mapping[int, float]) -> int | None:
        """The next place, from the excess of fits, once there is one below the target and one above it.

        Adapted files may grow faster with quality than plain ones.
        """
        below = max((place for place, excess in fits.items() if excess < 0), default=None)
        above = min((place for place, excess in fits.items() if excess >= 0), default=None)
        if below is None or above is None or above - below < 2:
            return None
        share = (self.aim.value - fits[below]) / (fits[above] - fits[below])
        return min(max(below + round(share * (above - below)), below + 1), above - 1)

    def trim(self, trimmed: Callable[[float], bytes]) -> bytes:
        """The first file that is not above the target; the untouched one if that is not, or if all are.

        trimmed: called with how far the latents are moved, returns the file.
        """

        @functools.cache
        def file(place: int) -> bytes:
            return trimmed(TRIM * (place / TRIMS) ** 2)

        def room(place: int) -> float:
            level = self.level(file(place), 0)
            return min(self.wanted - level.value if self.target.kind else math.inf, self.most - level.size)

        place = last_below(room, 0, TRIMS) + 1
        return file(place if place <= TRIMS else 0)

    def too_few(self) -> LoraCompError:
        least = round(math.exp(self.plain(self.places[0]).size))
        return LoraCompError(f"{self.target}: the smallest file of this image has {least} bytes; allow more")

    def met(self, level: Level) -> bool:
        """Whether a file is near enough to what is asked for, or to the most that it may have."""
        near = abs(level.value - self.wanted) <= self.tolerance or level.size >= self.most - SIZE_TOLERANCE
        return near and level.size <= self.most

    def find(self, change: Level = Level(0.0, 0.0)) -> int | None:  # noqa: B008
        """The place where plain files, changed by this, are nearest to what is asked for; None if all are too large."""

        def excess(place: int) -> float:
            return self.plain(place).value + change.value - self.wanted

        def excess_of_size(place: int) -> float:
            return self.plain(place).size + change.size - self.most

        first, last = self.places
        place = round(self.wanted) if self.target.kind is None else nearest(excess, first, last)
        if self.target.max_bytes and excess_of_size(place) > 0:
            place = last_below(excess_of_size, first, place - 1)
        return place if place >= first else None

    def warn(self, coded: Any) -> None:
        """Warn if a file is not near what is asked for, and `max_bytes` is not the reason."""
        level, kind = self.level(coded.data, round(coded.quality * SIXTEENTHS)), self.target.kind
        found = {"bpp": coded.bpp, "bytes": len(coded.data), "psnr": level.value}.get(kind or "", 0)
        if not self.target.near(found) and not self.met(level):
            line = f"{self.target}: the nearest file has {found:.5g} {UNITS[kind or '']}, at quality {coded.quality:g}"
            warnings.warn(line, LoraCompWarning, stacklevel=2)


def missed(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each target of an evaluation's records that some files are not near."""
    found: dict[str, list[bool]] = {}
    for record in records:
        kind, _, value = record.get("target", "").partition("=")
        if kind in UNITS:
            found.setdefault(record["target"], []).append(Target(kind, float(value)).near(record[kind]))
    return [
        f"{target}: {near.count(False)} of {len(near)} files are not near, since no quality of the codec is nearer"
        for target, near in found.items()
        if not all(near)
    ]


def meet(
    search: Search,
    plain: Callable[[float], Any],
    fit: Callable[[float], Any] | None,
    weight: Callable[[float], float] | None,
) -> Any:
    """The file that meets a target: the plain or the adapted one, whichever has the lower objective.

    Args:
        plain, fit: called with a quality, return an `api.Coded`; fit is None without adaptation.
        weight: of the distortion at a quality; None without a task.
    Raises:
        LoraCompError: no file is within the target's `max_bytes`.
    """
    quality = search.of_plain()
    coded = None if quality is None else plain(quality)
    if fit is not None:
        coded = better(coded, search.of_fits(fit), weight)
    if coded is None:
        raise search.too_few()
    search.warn(coded)
    return coded


def better(plain: Any, adapted: Any, weight: Callable[[float], float] | None) -> Any:
    """The file of lower objective under the weight of the adapted file's quality."""
    if plain is None or adapted is None or adapted.loss_before is None:
        return adapted or plain
    assert weight and plain.loss_after is not None and adapted.loss_after is not None
    distortion = (plain.loss_after - plain.bpp) / weight(plain.quality)
    loss = weight(adapted.quality) * distortion + plain.bpp
    if adapted.loss_after >= min(loss, adapted.loss_before):  # the latter where `encode` preferred the plain file
        return plain
    return replace(adapted, loss_before=loss)


def nearer_means(codec: Any, latents: Mapping[str, Tensor], by: float) -> Mapping[str, Tensor]:
    """Latents whose y is nearer to its predicted means by at most this (soft thresholding), and z as it changes with y:
    z of refined latents is not that of their y."""
    if by == 0:
        return latents
    means = codec.rate(latents).predictions["means"]
    away = latents["y"] - means
    before, after = (
        codec.latents_from(y) for y in (latents["y"], means + away.sign() * (away.abs() - by).clamp_min(0))
    )
    return {name: latents[name] + (after[name] - before[name]) for name in latents}


def nearest(rising: Callable[[int], float], first: int, last: int) -> int:
    """The place from first to last where a rising function is nearest to 0."""
    below = last_below(rising, first, last)
    return min(max(below, first), min(below + 1, last), key=lambda place: abs(rising(place)))


def last_below(rising: Callable[[int], float], first: int, last: int) -> int:
    """The last place from first to last where a rising function is at most 0; first - 1 if there is none.

    By regula falsi: few evaluations where the function is nearly linear.
    """
    below, above = first - 1, last + 1
    known: dict[int, float] = {}
    place = (first + last) // 2
    while above - below > 1:
        known[place] = rising(place)
        if known[place] <= 0:
            below = place
        else:
            above = place
        if below in known and above in known:
            share = known[below] / (known[below] - known[above])
            place = min(max(below + round(share * (above - below)), below + 1), above - 1)
        else:
            place = last if below in known else first
    return below
