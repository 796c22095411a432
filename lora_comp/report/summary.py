"""Summary tables of a run: means per method and rate point, and BD-rates against the plain codec.

A record is an entry of `results.json`, of one image and setting. A row is the mean of the records of one task, codec,
method and rate point: a quality, or a target (`lora_comp.target`), whose files differ in quality.
"""

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table

from lora_comp.report.bdrate import bd_rate

PLAIN = "none"
GROUP = ("task", "codec", "method", "quality")
# Fields of a record that are not metrics of the task.
_BOOKKEEPING = (
    "image",
    "height",
    "width",
    "count",
    *GROUP,
    "target",
    "bytes",
    "bpp",
    "psnr",
    "score",
    "loss_before",
    "loss_after",
    "seconds_encode",
    "seconds_decode",
    "label",
    "file",
    "bytes_adapter",
    "adapted",
    "threads",
)
DETAILS = ("AP75", "AP_small", "AP_medium", "AP_large")
SUBTASK_SCORES = ("_top1", "_agreement", "_mAP", "_psnr")  # with several tasks, each one's score has its name before


def rate_point(record: dict) -> float | str:
    """The target of a record or a row, else its quality."""
    return record.get("target", record["quality"])


def group_of(record: dict) -> tuple:
    """What the records of a row have in common."""
    return *(record[key] for key in GROUP[:-1]), rate_point(record)


def lower_is_better(name: str) -> bool:
    return name.endswith("feature_distance")


def summary(records: Sequence[dict]) -> list[dict]:
    """A row per task, codec, method and rate point: `count`, and the mean of every number in its records.

    bpp is averaged per image, as the field reports it. A value that some records lack (None or absent: an image
    without label has no top-1) is averaged over the others. Plain rows come first, then methods in order of
    appearance, each by rising quality.
    """
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(group_of(record), []).append(record)
    rows = []
    for (*names, point), members in groups.items():
        row = dict(zip(GROUP, (*names, point), strict=True)) | {"count": len(members)}
        if "target" in members[0]:
            row |= {"quality": sum(record["quality"] for record in members) / len(members), "target": point}
        for key in dict.fromkeys(key for record in members for key in record):
            values = [record[key] for record in members if isinstance(record.get(key), (int, float))]
            if values and key not in (*GROUP, "height", "width", "label"):
                row[key] = sum(values) / len(values)
        rows.append(row)
    methods = [PLAIN, *dict.fromkeys(record["method"] for record in records)]
    return sorted(rows, key=lambda row: (row["task"], row["codec"], methods.index(row["method"]), row["quality"]))


def metric_names(rows: Sequence[dict]) -> list[str]:
    """The task's own metrics in the rows, except the one that is the score."""
    names = dict.fromkeys(key for row in rows for key in row if key not in _BOOKKEEPING)
    return [name for name in names if name != score_name(rows)]


def score_name(rows: Sequence[dict]) -> str:
    """Name of the first metric that equals the score in every row; "score" if none does."""
    names = dict.fromkeys(key for row in rows for key in row if key == "psnr" or key not in _BOOKKEEPING)
    return next((name for name in names if all(row.get(name) == row["score"] for row in rows)), "score")


def bd_rates(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """BD-rate in percent of each method against the plain codec, by metric: score, feature distance, PSNR, and the
    scores of several tasks.

    Undefined ones are left out (see `bd_rate`). The rows must be of one task and one codec.
    """
    rates: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        others = dict.fromkeys(n for row in rows for n in row if n.endswith(SUBTASK_SCORES) or lower_is_better(n))
        for name in ("score", *others, "psnr", "psnr_roi"):
            sign = -1 if lower_is_better(name) else 1
            anchor, test = (
                [(row["bpp"], sign * row[name]) for row in rows if row["method"] == which and name in row]
                for which in (PLAIN, method)
            )
            rate = bd_rate(anchor, test)
            if method != PLAIN and not math.isnan(rate):
                rates.setdefault(method, {})[name] = rate
    return rates


def _columns(rows: Sequence[dict], brief: bool) -> list[tuple[str, str, int]]:
    """Key, heading and decimals of the columns; `brief` leaves out `DETAILS`, for a terminal."""
    score = score_name(rows)
    columns = [("bytes", "bytes", 0), ("bpp", "bpp", 3)]
    if score != "psnr":
        columns.append(("psnr", "PSNR dB", 2))
    columns.append(("score", {"score": "score", "psnr": "score: PSNR dB"}.get(score, f"score: {_words(score)}"), 3))
    names = [name for name in metric_names(rows) if not (brief and name.endswith(DETAILS))]
    return columns + [(name, _words(name), 3) for name in names]


def _words(name: str) -> str:
    names = {"ms_ssim": "MS-SSIM", "top1": "top-1", "psnr": "PSNR", "psnr_roi": "PSNR in the region"}
    return names.get(name, name.replace("_", " "))


def _cells(rows: Sequence[dict], brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: plain and adapted rows grouped by rate point, with the change against plain."""
    columns = _columns(rows, brief)
    adapted = any(row["method"] != PLAIN for row in rows)
    points = list(dict.fromkeys(map(rate_point, rows)))
    headings = [
        "target" if any("target" in row for row in rows) else "quality",
        "method",
        *[heading for _, heading, _ in columns],
    ]
    headings += ["Δ bytes", "Δ score"] if adapted else []
    plain = {(row["task"], row["codec"], rate_point(row)): row for row in rows if row["method"] == PLAIN}
    several = len({(row["task"], row["codec"]) for row in rows}) > 1
    lines = []

    def place(row: dict) -> tuple:
        order = points.index(row["target"]) if "target" in row else row["quality"]
        return row["task"], row["codec"], order

    for row in sorted(rows, key=place):  # stable: plain comes first
        method = f"{row['task']} {row['codec']} {row['method']}" if several else row["method"]
        cells = [str(rate_point(row)), method]
        cells += [f"{row[key]:,.{digits}f}" if key in row else "" for key, _, digits in columns]
        if adapted:
            cells += _differences(row, plain.get((row["task"], row["codec"], rate_point(row))))
        lines.append(cells)
    return headings, lines


def _differences(row: dict, plain: dict | None) -> list[str]:
    if plain is None or row["method"] == PLAIN:
        return ["", ""]
    return [f"{100 * (row['bytes'] / plain['bytes'] - 1):+.1f} %", f"{row['score'] - plain['score']:+.3f}"]


def bd_rate_lines(rows: Sequence[dict]) -> list[str]:
    """A line per method whose BD-rate against the plain codec is defined."""
    lines = []
    for task, codec in dict.fromkeys((row["task"], row["codec"]) for row in rows):
        own = [row for row in rows if (row["task"], row["codec"]) == (task, codec)]
        score = _words(score_name(own))
        for method, rates in bd_rates(own).items():
            named = {
                ("score" if score == "score" else f"score ({score})") if name == "score" else _words(name): rate
                for name, rate in rates.items()
                if not (name == "psnr" and score == "PSNR")
            }
            figures = ", ".join(f"{rate:+.1f} % at equal {name}" for name, rate in named.items())
            lines.append(f"BD-rate of {method} against the plain {codec}, task {task}: {figures}")
    return lines


def _images(rows: Sequence[dict]) -> str:
    fewest, most = min(row["count"] for row in rows), max(row["count"] for row in rows)
    return f"{most} image{'s' if most > 1 else ''}" if fewest == most else f"{fewest} to {most} images"


def table(rows: Sequence[dict]) -> Table:
    """The rows as a table for the terminal, with BD-rates below."""
    headings, lines = _cells(rows, brief=True)
    shown = Table(
        title=f"means over {_images(rows)}",
        caption="\n".join(bd_rate_lines(rows)) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    for i, heading in enumerate(headings):
        longest = max(map(len, (*heading.split(), *(cells[i] for cells in lines))))
        shown.add_column(heading, justify="left" if i == 1 else "right", min_width=longest)
    for i, cells in enumerate(lines):
        shown.add_row(*cells, end_section=i + 1 < len(lines) and lines[i + 1][0] != cells[0])
    return shown


def markdown(rows: Sequence[dict]) -> str:
    """The rows as a Markdown table, with BD-rates below."""
    headings, lines = _cells(rows)
    marks = ["---" if i == 1 else "---:" for i in range(len(headings))]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, marks, *lines))
    return "\n\n".join([f"Means over {_images(rows)}.", text, *bd_rate_lines(rows)]) + "\n"


def rates_markdown(runs: dict[str, Sequence[dict]]) -> str:
    """A Markdown table with a row of BD-rates per run and method. runs: name to summary."""
    by_run = {(name, method): (rows, rates) for name, rows in runs.items() for method, rates in bd_rates(rows).items()}
    figures = list(dict.fromkeys(figure for _, rates in by_run.values() for figure in rates))
    headings = ["run", "task", "images", "method", *(f"BD-rate at equal {_words(figure)}" for figure in figures)]
    lines = [headings, ["---"] * 2 + ["---:", "---"] + ["---:"] * len(figures)]
    for (name, method), (rows, rates) in by_run.items():
        score = _words(score_name(rows))
        cells = [f"{rates[f]:+.1f} %" + (f" ({score})" if f == "score" else "") if f in rates else "" for f in figures]
        lines.append([name, rows[0]["task"], str(max(row["count"] for row in rows)), method, *cells])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
