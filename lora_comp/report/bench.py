"""The results of `pytest benchmarks --benchmark-json FILE.json` as a table of our times against those of named peers.

A claim is one group of benchmarks with a parameter `kind`: "ours" or the name of a peer.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_comp.errors import LoraCompError

OURS = "ours"
NOISY = 1.25  # a median this many times the fastest round indicates load from other processes
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_VECTORS = (("avx512f", "AVX-512"), ("avx2", "AVX2"))


class Claim(NamedTuple):
    """One comparison: median seconds over the rounds, ours and each peer's, in the order they ran."""

    name: str
    ours: float
    peers: Mapping[str, float]
    noisy: bool

    @property
    def ratios(self) -> dict[str, float]:
        """Each peer's time over ours; above 1 ours is faster."""
        return {peer: seconds / self.ours for peer, seconds in self.peers.items()}


class Speeds(NamedTuple):
    """The claims of a file, the names of groups without ours or without a peer, and a line on the machine and date."""

    claims: list[Claim]
    left_out: list[str]
    machine: str


def read_speeds(path: Path) -> Speeds:
    """Read a JSON file of pytest-benchmark.

    Raises LoraCompError if the file is missing, is not one of pytest-benchmark, or compares nothing of ours to a peer.
    """
    try:
        report = json.loads(path.read_text())
        groups = _groups(report["benchmarks"])
        machine = machine_line(report["machine_info"], report["datetime"])
        if any(benchmark.get("options", {}).get("timer") == "process_time" for benchmark in report["benchmarks"]):
            machine += ", processor time"
    except OSError as error:
        raise LoraCompError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoraCompError(f"{path} is not a JSON file of pytest-benchmark: {error!r}") from None
    compared = {name: kinds for name, kinds in groups.items() if OURS in kinds and len(kinds) > 1}
    if not compared:
        raise LoraCompError(f"{path} has no group of benchmarks with kind={OURS} beside a peer")
    claims = [
        Claim(
            name,
            kinds[OURS][0],
            {kind: median for kind, (median, _) in kinds.items() if kind != OURS},
            noisy=any(median > NOISY * fastest for median, fastest in kinds.values()),
        )
        for name, kinds in compared.items()
    ]
    return Speeds(claims, [name for name in groups if name not in compared], machine)


def _groups(benchmarks: Sequence[dict]) -> dict[str, dict[str, tuple[float, float]]]:
    """Median and fastest round in seconds, by group and kind; benchmarks without a kind are left out."""
    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for benchmark in benchmarks:
        if "kind" not in (benchmark["params"] or {}):
            continue
        kind, name = str(benchmark["params"]["kind"]), str(benchmark["group"])
        kinds = groups.setdefault(name, {})
        if kind in kinds:
            raise LoraCompError(f"the group {name!r} has two benchmarks of kind={kind}: {benchmark['fullname']}")
        times = float(benchmark["stats"]["median"]), float(benchmark["stats"]["min"])
        if not all(math.isfinite(seconds) and seconds > 0 for seconds in times):
            raise ValueError(f"{benchmark['fullname']} took {times[0]} s")
        kinds[kind] = times
    return groups


def machine_line(info: Mapping, date: str) -> str:
    """Processor, cores, GPU, torch, threads and day, as far as pytest-benchmark's machine_info has them."""
    cpu = info.get("cpu", {})
    vectors = [name for flag, name in _VECTORS if flag in cpu.get("flags", ())][:1]
    cores, gpu, torch, threads = cpu.get("count"), info.get("gpu"), info.get("torch"), info.get("threads")
    return ", ".join(
        [
            cpu.get("brand_raw") or info.get("processor") or info.get("machine") or "an unknown processor",
            *vectors,
            *([counted(cores, "core")] if cores else []),
            *([gpu] if gpu else []),
            *([f"torch {torch}"] if torch else []),
            *([counted(threads, "thread")] if threads else []),
            date[:10],
        ]
    )


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def speed_table(speeds: Speeds) -> str:
    """A Markdown table with a row per claim, followed by the machine, noisy claims and groups that were left out."""
    rows = [("benchmark", OURS, "peers", "peers / ours"), ("---", "---:", "---", "---:")]
    for claim in speeds.claims:
        scale, unit = _unit(max(claim.ours, *claim.peers.values()))
        peers = ", ".join(f"{peer} {three_digits(seconds / scale)} {unit}" for peer, seconds in claim.peers.items())
        rows.append(
            (
                claim.name,
                f"{three_digits(claim.ours / scale)} {unit}",
                peers,
                ", ".join(map(three_digits, claim.ratios.values())),
            )
        )
    notes = [f"Medians on {speeds.machine}."]
    if noisy := [claim.name for claim in speeds.claims if claim.noisy]:
        notes.append(f"Noisy (median > {NOISY}x the fastest round): {'; '.join(noisy)}.")
    if speeds.left_out:
        notes.append(f"Left out (nothing to compare in this run): {'; '.join(speeds.left_out)}.")
    return "\n\n".join(["\n".join("| " + " | ".join(cells) + " |" for cells in rows), *notes]) + "\n"


def _unit(seconds: float) -> tuple[float, str]:
    return next((unit for unit in _UNITS if seconds >= unit[0]), _UNITS[-1])


def three_digits(value: float) -> str:
    """Three significant digits without an exponent: 0.812, 19.1, 1,230."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(rounded)))}f}"
