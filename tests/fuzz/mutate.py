"""Decode millions of mutated files: each raises a one-line error or decodes, within limits of time and memory.

    python tests/fuzz/mutate.py COUNT [--seed S] [--start INDEX] [--jobs N] [--log FILE]

Files INDEX to INDEX + COUNT of seed S are mutated from the valid files of the corpus and decoded in child processes. If
a child dies, hangs or exceeds a limit, its file is reported and the run continues. With a log, the same command resumes
an interrupted run. `mutate.py 1 --start INDEX` repeats one finding. Exit code 1 if there are findings.
"""

import argparse
import collections
import json
import multiprocessing
import os
import re
import resource
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # parallelism is over processes

import torch
from mutations import Mutants
from targets import corpus, image

CHUNK = 5000  # files per child
SECONDS = 1.0  # processor time allowed per file
MEGABYTES = 256  # allowed per file beyond the memory of valid files
HANG = 30.0  # seconds without progress of a child


class Report:
    """Outcomes of the files, summed over children and the lines of a log."""

    def __init__(self) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.findings: dict[str, str] = {}  # by index of the file
        self.slowest, self.megabytes, self.seconds = 0.0, 0.0, 0.0

    def add(self, line: dict) -> None:
        self.outcomes.update(line["outcomes"])
        self.kinds.update(line["kinds"])
        self.findings |= line["findings"]
        self.slowest, self.megabytes = max(self.slowest, line["slowest"]), max(self.megabytes, line["megabytes"])
        self.seconds += line["seconds"]

    def print(self) -> None:
        count = sum(self.outcomes.values())
        for title, table in (("change", self.kinds), ("outcome", self.outcomes)):
            print(f"\n| {title} | files | share |\n| --- | ---: | ---: |")
            for name, files in table.most_common():
                print(f"| {name} | {files:,} | {files / count:.2%} |")
        print(
            f"\n{count:,} files in {self.seconds:,.0f} s; longest {self.slowest:.3f} s of processor time (limit "
            f"{SECONDS:g}), at most {self.megabytes:.0f} MB above the valid files (limit {MEGABYTES}); "
            f"{len(self.findings)} findings"
        )
        for index, finding in self.findings.items():
            print(f"file {index}: {finding}")


def class_of(message: str) -> str:
    """A message without the numbers and names of its file."""
    message = re.split(r"[;:](?= )", message)[0]
    message = re.sub(r"(?<= )'.*'", "'...'", message)
    return re.sub(r"\b[0-9a-f]{8}\b|0x[0-9a-f]+|\d+", "N", message)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def limit_memory() -> None:
    """Let allocations of MEGABYTES beyond the present peak fail, as a MemoryError or the like."""
    status = Path("/proc/self/status").read_text()
    used = int(re.search(r"VmPeak:\s+(\d+) kB", status)[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + (MEGABYTES << 20),) * 2)


def decode_all(mutants: Mutants, indexes: Sequence[int], at, connection) -> None:
    """In a child: decode files and send a line of the report. `at` holds the index of the current file."""
    for data in mutants.files:
        assert image(data) == "read"
    limit_memory()
    base, start = peak_megabytes(), time.monotonic()
    outcomes, kinds = collections.Counter(), collections.Counter()
    findings, slowest = {}, 0.0
    parent = os.getppid()
    for index in indexes:
        if os.getppid() != parent:  # the parent has ended
            return
        at.value = index
        kind, data = mutants[index]
        before, began = peak_megabytes(), time.process_time()
        try:
            outcome = class_of(image(data))
        except Exception as error:
            outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            findings[str(index)] = outcome
        seconds, grown = time.process_time() - began, peak_megabytes() - before
        if seconds > SECONDS or grown > MEGABYTES:
            findings[str(index)] = f"{seconds:.2f} s, {grown:.0f} MB: {outcome}"
        outcomes[outcome] += 1
        kinds[kind] += 1
        slowest = max(slowest, seconds)
    connection.send(
        {
            "outcomes": outcomes,
            "kinds": kinds,
            "findings": findings,
            "slowest": slowest,
            "megabytes": peak_megabytes() - base,
            "seconds": time.monotonic() - start,
        }
    )


class Child:
    """A process that decodes a chunk, except for files that killed earlier processes."""

    def __init__(self, mutants: Mutants, chunk: range, killers: dict[int, str]):
        context = multiprocessing.get_context("fork")  # inherits the loaded codecs
        self.chunk, self.killers = chunk, killers
        self.at = context.RawValue("q", -1)
        self.last, self.since = -1, time.monotonic()
        self.connection, theirs = context.Pipe(duplex=False)
        indexes = [index for index in chunk if index not in killers]
        self.process = context.Process(target=decode_all, args=(mutants, indexes, self.at, theirs))
        self.process.start()
        theirs.close()

    def hangs(self) -> bool:
        if self.at.value != self.last:
            self.last, self.since = self.at.value, time.monotonic()
        return time.monotonic() - self.since > HANG

    def line(self) -> dict | None:
        """The child's line of the report, with the files that killed earlier ones; None if it died first."""
        try:
            line = self.connection.recv()
        except EOFError:
            return None
        finally:
            self.process.join()
        line["findings"] |= {str(index): reason for index, reason in self.killers.items()}
        for reason in self.killers.values():
            line["outcomes"][reason] += 1
        return line | {"chunk": [self.chunk.start, self.chunk.stop]}


def run(mutants: Mutants, chunks: Sequence[range], jobs: int) -> Iterator[dict]:
    """A line of the report for each chunk, in order of completion."""
    waiting = [(chunk, {}) for chunk in reversed(chunks)]
    children: list[Child] = []
    while waiting or children:
        while waiting and len(children) < jobs:
            children.append(Child(mutants, *waiting.pop()))
        ended = wait([end for child in children for end in (child.process.sentinel, child.connection)], timeout=1)
        for child in list(children):
            hung = child.hangs()
            if hung:
                child.process.kill()
            elif child.process.sentinel not in ended and child.connection not in ended:
                continue
            children.remove(child)
            line = None if hung else child.line()
            if line is not None:
                yield line
                continue
            child.process.join()
            if child.at.value < 0:
                raise SystemExit("error: a child died before its first file; see above")
            reason = f"no answer in {HANG:g} s" if hung else f"the process died, exit code {child.process.exitcode}"
            waiting.append((child.chunk, child.killers | {child.at.value: reason}))


def logged(path: Path | None, key: dict, report: Report) -> set[tuple[int, int]]:
    """Add the log's outcomes of these files to the report; returns the chunks that are done."""
    done = set()
    for text in path.read_text().splitlines() if path and path.exists() else []:
        line = json.loads(text)
        if line["key"] == key and tuple(line["chunk"]) not in done:
            done.add(tuple(line["chunk"]))
            report.add(line)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="index of the first file")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--log", type=Path, help="a line of JSON per 5000 files, to resume from")
    options = parser.parse_args()

    torch.set_num_threads(1)
    files = list(corpus("valid/*").values())
    for data in files:  # also loads the codecs, which children inherit
        said = image(data)
        if said != "read":
            raise SystemExit(f"error: a file of the corpus does not decode ({said}): run tests/fuzz/make_corpus.py")
    key = {"seed": options.seed, "files": zlib.crc32(b"".join(files))}
    report = Report()
    stop = options.start + options.count
    chunks = [range(i, min(i + CHUNK, stop)) for i in range(options.start, stop, CHUNK)]
    done = logged(options.log, key, report)
    todo = [chunk for chunk in chunks if (chunk.start, chunk.stop) not in done]
    for line in run(Mutants(files, options.seed), todo, options.jobs):
        report.add(line)
        if options.log:
            with open(options.log, "a") as log:
                log.write(json.dumps({"key": key, **line}) + "\n")
        print(f"{sum(report.outcomes.values()):,} files, {len(report.findings)} findings", file=sys.stderr)
    report.print()
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
