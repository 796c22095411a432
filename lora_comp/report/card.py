"""Model cards of the weights in the package: training data, steps, hours, hardware, and results."""

from collections.abc import Sequence
from pathlib import Path

from lora_comp.codecs import CODECS
from lora_comp.weights import read_weights
from lora_comp.zoo import codec_path
from lora_comp.zoo.registry import digest


def weights_of(name: str, quality: float) -> Path:
    """The file in the package with a codec's weights for a quality."""
    return codec_path(name, None if CODECS[name].variable else quality)


def codec_scores(name: str, report: dict, folder: str) -> dict:
    """The results that a codec's card and the zoo show, from what `compare_codecs` returns for the images of `folder`.

    "curve" holds the SHA-256 of each rate point's weights, so that results of earlier weights are never shown.
    """
    curve = [
        {**row, "gain_db": gain, "sha256": digest(weights_of(name, row["setting"]))}
        for row, gain in zip(report["curves"][name], report["gain_db"], strict=True)
    ]
    against = {anchor: rate for anchor, rate in report["bd_rate"][name].items() if anchor != name}
    return {"codec": name, "folder": folder, "images": report["images"], "curve": curve, "bd_rate": against}


def codec_card(scores: dict) -> str:
    """The card of a codec in Markdown, from `codec_scores` and the metadata of the weights."""
    name, rows = scores["codec"], scores["curve"]
    paths = list(dict.fromkeys(weights_of(name, row["setting"]) for row in rows))
    cards = [read_weights(path, path.stem)[1] for path in paths]
    anchors = list(rows[0]["gain_db"])
    lines = [
        f"# {name}",
        "",
        "Weights in float16; docs/training.md says how they were trained.",
        "",
    ]
    lines += table(
        ["quality", "lambda", "steps", "hours", "hardware", "trained on"],
        [[*rates(c), c["steps"], hours(c), c["hardware"], ", ".join(c["data"])] for c in cards],
    )
    lines += [
        "",
        f"Means over the {scores['images']} images of {scores['folder']}; bpp counts every byte of a file. "
        "dB over a codec: PSNR gain at equal bpp.",
        "",
    ]
    lines += table(
        ["quality", "bpp", "PSNR dB", *(f"dB over {a}" for a in anchors)],
        [
            [r["setting"], f"{r['bpp']:.3f}", f"{r['psnr']:.2f}", *(signed(r["gain_db"][a]) for a in anchors)]
            for r in rows
        ],
    )
    lines += [
        "",
        "BD-rate: "
        + ", ".join(f"{rate:+.1f} % against {a}" for a, rate in scores["bd_rate"].items() if rate is not None)
        + ".",
    ]
    if "jpeg" in anchors:
        behind = [r["setting"] for r in rows if not (r["gain_db"]["jpeg"] or 0) > 0]
        lines += [
            "",
            f"Quality {', '.join(map(str, behind))} is below JPEG at equal bpp."
            if behind
            else "Every rate point is above JPEG (Pillow, 4:2:0) at equal bpp.",
        ]
    return "\n".join(lines) + "\n"


def rates(card: dict) -> list[str]:
    """Quality and lambda of a codec's card; their ranges, where it is one for all rates."""
    if card["quality"] is not None:
        return [f"{card['quality']:g}", str(card["lambda"])]
    lambdas = card["lambdas"]
    return [f"1 to {len(lambdas)}", f"{lambdas[0]} to {lambdas[-1]}"]


def hours(card: dict) -> str:
    return f"{card['minutes'] / 60:.2f}"


def table(headings: Sequence[str], rows: Sequence[Sequence]) -> list[str]:
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in (headings, ["---:"] * len(headings), *rows)]


def signed(value: float | None) -> str:
    """A gain in dB, or a dash where the other codec has no point at this rate."""
    return "-" if value is None or value != value else f"{value:+.2f}"


def network_card(facts: dict) -> str:
    """The card of a task network in Markdown, from the .json beside its weights."""
    training = {
        ("hours" if key == "minutes" else key): (hours(facts) if key == "minutes" else value)
        for key, value in facts.items()
        if key not in ("name", "classes", "masks", "stage_variance")
    }
    what = {None: "A classifier", False: "A detector", True: "An instance segmenter"}[facts.get("masks")]
    return (
        "\n".join(
            [
                f"# {facts['name']}",
                "",
                f"{what} of {len(facts['classes'])} classes ({', '.join(facts['classes'])}). "
                "Weights in float16, trained by `python -m lora_comp.train what=network`.",
                "",
                *(f"- {key.replace('_', ' ')}: {value}" for key, value in training.items()),
            ]
        )
        + "\n"
    )


def adapters_card(cards: Sequence[dict]) -> str:
    """The card of all adapters in Markdown, from their metadata; a dash for a result that was not recorded."""
    names = ("task", "codec", "quality", "method", "rank", "alpha", "steps")
    reached = ("bpp", "distortion")
    rows = [
        [
            *("all" if card[name] is None else card[name] for name in names),
            hours(card),
            card["hardware"],
            ", ".join(card["data"]),
            *(f"{card[name]:.4g}" if name in card else "-" for name in reached),
        ]
        for card in cards
    ]
    return (
        "\n".join(
            [
                "# Adapters",
                "",
                "U, S and V pre-trained for a task by `python -m lora_comp.train what=adapter`. bpp and the task's "
                "distortion are running means at the end of training.",
                "",
                *table([*names, "hours", "hardware", "trained on", *reached], rows),
            ]
        )
        + "\n"
    )
