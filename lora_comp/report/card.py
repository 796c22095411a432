"""The card of a codec: what it was trained on, for how long, and how it stands beside the classic codecs."""
from collections.abc import Sequence

from lora_comp.zoo import codec_path, read_weights


def codec_card(name: str, report: dict, folder: str) -> str:
    """Markdown from what `compare_codecs` returns for the pictures of `folder`."""
    rows = report["curves"][name]
    cards = [read_weights(codec_path(name, row["setting"]), f"{name} quality {row['setting']}")[1] for row in rows]
    anchors = list(report["gain_db"][0])
    lines = [
        f"# {name}", "",
        "Weights in float16; trained by `lora_comp.training.codec`, lower qualities from a checkpoint of the "
        "highest.", "",
    ]
    lines += table(
        ["quality", "lambda", "steps", "minutes", "hardware", "trained on"],
        [[c["quality"], c["lambda"], c["steps"], c["minutes"], c["hardware"], ", ".join(c["data"])] for c in cards])
    lines += ["", f"Means over the {report['pictures']} pictures of {folder}, every byte of a file that was decoded; "
              "dB: PSNR above another codec at equal bpp.", ""]
    lines += table(
        ["quality", "bpp", "PSNR dB", *(f"dB over {a}" for a in anchors)],
        [[r["setting"], f"{r['bpp']:.3f}", f"{r['psnr']:.2f}", *(signed(gain[a]) for a in anchors)]
         for r, gain in zip(rows, report["gain_db"], strict=True)])
    lines += ["", "BD-rate: " + ", ".join(
        f"{rate:+.1f} % against {a}" for a, rate in report["bd_rate"][name].items() if a != name) + "."]
    behind = [r["setting"] for r, gain in zip(rows, report["gain_db"], strict=True) if not gain["jpeg"] > 0]
    lines += ["", f"Quality {', '.join(map(str, behind))} falls short of JPEG at equal bpp." if behind
              else "Every rate point beats JPEG (Pillow, 4:2:0) at equal bpp."]
    return "\n".join(lines) + "\n"


def table(headings: Sequence[str], rows: Sequence[Sequence]) -> list[str]:
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in (headings, ["---:"] * len(headings), *rows)]


def signed(value: float | None) -> str:
    """A gain, or a dash where the other codec does not reach this rate."""
    return "-" if value is None or value != value else f"{value:+.2f}"


def network_card(facts: dict) -> str:
    """Markdown from the .json that lies beside a network's weights."""
    told = {key: value for key, value in facts.items() if key not in ("name", "classes", "stage_variance")}
    return "\n".join([
        f"# {facts['name']}", "", f"A classifier of {len(facts['classes'])} classes ({', '.join(facts['classes'])}); "
        "float16, made by `python -m lora_comp.train what=network`.", "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in told.items())]) + "\n"


def adapters_card(cards: Sequence[dict]) -> str:
    """Markdown from the metadata of all adapters."""
    names = ("task", "codec", "quality", "method", "rank", "alpha", "steps", "minutes", "hardware")
    rows = [[*(card[name] for name in names), ", ".join(card["data"])] for card in cards]
    return "\n".join([
        "# Adapters", "",
        "Pre-trained for a task, all of U, S and V; made by `python -m lora_comp.train what=adapter`.", "",
        *table([*names, "trained on"], rows)]) + "\n"
