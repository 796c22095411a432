"""mAP over bpp of an unmodified third-party detector: plain and adapted files, JPEG, WebP and AVIF.

The detector is FastestDet as an ONNX file, trained on COCO by its authors; images and annotations are from COCO.

    python -m lora_comp.run task=open task.network=fastestdet-coco.onnx task.input=examples/fastestdet.yaml \\
        data=folder data.path=COCO/images out=results/fastestdet
    python examples/fastestdet.py fastestdet-coco.onnx COCO results/fastestdet

COCO is a folder with images/ and instances.json. Each file of the run is decoded and passed to the detector, whose
detections are scored by pycocotools; likewise for conventional codecs. The results are detections.json and
detections.png in the folder of the run.
"""

import argparse
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.ops import batched_nms

import lora_comp as lc
from lora_comp.data import read_image
from lora_comp.report.bdrate import bd_rate
from lora_comp.report.codecs import round_trip

CLASSIC = {"jpeg": (5, 10, 15, 20, 30, 50), "webp": (1, 5, 10, 20, 40, 60), "avif": (10, 15, 25, 35, 45, 55)}
DRAWS = 200  # bootstrap samples of the images, for confidence intervals
LEAST, MOST, OVERLAP = 0.001, 100, 0.45  # minimal score, maximal number of detections, IoU threshold of NMS


def detections(out: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Decode FastestDet's output for one image, (85, rows, columns): objectness, box and 80 class probabilities per
    cell. Returns boxes (n, 4) as x, y, width, height in pixels, scores (n,) and classes (n,)."""
    objectness, (a, b, c, d), classes = out[0], out[1:5], out[5:]
    rows, columns = objectness.shape
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    w, h = width * c.sigmoid(), height * d.sigmoid()
    x, y = width * (a.tanh() + j) / columns - w / 2, height * (b.tanh() + i) / rows - h / 2
    best, label = classes.max(dim=0)
    score = objectness**0.6 * best**0.4
    boxes, score, label = torch.stack([x, y, w, h], -1).view(-1, 4), score.flatten(), label.flatten()
    likely = score > LEAST
    boxes, score, label = boxes[likely], score[likely], label[likely]
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    kept = batched_nms(corners, score, label, OVERLAP)[:MOST]
    return boxes[kept], score[kept], label[kept]


class Scorer:
    """mAP and AP50 of images by name, by pycocotools; with `draws` also the mAP of DRAWS bootstrap samples."""

    def __init__(self, network: str, annotations: Path, settings: Path):
        self.network = lc.load_task("open", network=network, input=settings).network
        with contextlib.redirect_stdout(io.StringIO()):
            self.truth = COCO(str(annotations))
        self.categories = sorted(self.truth.getCatIds())
        self.ids = {facts["file_name"]: facts["id"] for facts in self.truth.dataset["images"]}

    @torch.no_grad()
    def score(self, images: Iterator[tuple[str, Tensor]], draws: bool = False) -> dict:
        results, seen = [], []
        for name, image in images:
            seen.append(self.ids[name])
            boxes, scores, labels = detections(self.network(image[None])[0], *image.shape[1:])
            results += [
                {"image_id": seen[-1], "category_id": self.categories[label], "bbox": box, "score": score}
                for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
            ]
        if not results:
            return {"mAP": 0.0, "AP50": 0.0} | ({"draws": [0.0] * DRAWS} if draws else {})
        with contextlib.redirect_stdout(io.StringIO()):
            judge = COCOeval(self.truth, self.truth.loadRes(results), "bbox")
            judge.params.imgIds = seen
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        scores = {"mAP": float(judge.stats[0]), "AP50": float(judge.stats[1])}
        return scores | ({"draws": drawn(judge)} if draws else {})


def drawn(judge: COCOeval) -> list[float]:
    """mAP of DRAWS bootstrap samples of the evaluated images; equal numbers of images give equal samples."""
    areas, images = len(judge.params.areaRng), len(judge.params.imgIds)
    matches = np.array(judge.evalImgs, dtype=object).reshape(-1, areas, images)[:, 0]  # (categories, images)
    judge.params.areaRng, judge.params.maxDets = judge.params.areaRng[:1], [MOST]
    judge._paramsEval.areaRng = judge.params.areaRng
    chance, means = np.random.default_rng(0), []
    for _ in range(DRAWS):
        judge.evalImgs = matches[:, chance.integers(images, size=images)].ravel().tolist()
        with contextlib.redirect_stdout(io.StringIO()):
            judge.accumulate()
        precision = judge.eval["precision"]
        means.append(float(precision[precision > -1].mean()) if (precision > -1).any() else 0.0)
    return means


def from_run(folder: Path, records: list[dict]) -> Iterator[tuple[str, Tensor]]:
    for record in records:
        yield record["image"], lc.decode((folder / record["file"]).read_bytes())


def from_classic(name: str, setting: int, originals: dict[str, Tensor], rates: list[float]):
    """Images after coding by a conventional codec; the bpp of each is appended to `rates`."""
    for name_of, original in originals.items():
        size, decoded = round_trip(name, setting, original)
        rates.append(8 * size / original[0].numel())
        yield name_of, torch.from_numpy(decoded).permute(2, 0, 1).float() / 255


def curves(scorer: Scorer, run: Path, images: Path) -> dict[str, list[dict]]:
    """Rate points of each method by rising bpp: those of the run, then conventional codecs on the same images."""
    records = json.loads((run / "results.json").read_text())["records"]
    points: dict[str, list[dict]] = {}
    for method, quality in sorted({(r["method"], r["quality"]) for r in records}):
        own = [r for r in records if (r["method"], r["quality"]) == (method, quality)]
        point = {"setting": quality, "bpp": float(np.mean([r["bpp"] for r in own]))}
        points.setdefault("plain" if method == "none" else method, []).append(
            point | scorer.score(from_run(run, own), draws=True)
        )
    originals = {name: read_image(images / name) for name in dict.fromkeys(r["image"] for r in records)}
    for name, settings in CLASSIC.items():
        points[name] = []
        for setting in settings:
            rates: list[float] = []
            scores = scorer.score(from_classic(name, setting, originals, rates))
            points[name].append({"setting": setting, "bpp": float(np.mean(rates))} | scores)
    return {"uncompressed": [scorer.score(iter(originals.items()))]} | points


def lead(plain: list[dict], point: dict) -> tuple[float, float, float]:
    """Gain in mAP of a point over the plain codec at equal bpp, with its 5th and 95th bootstrap percentile.

    The mAP of the plain codec is interpolated linearly, and constant below its lowest bpp.
    """

    def above(mean: float, others: list[float]) -> float:
        return mean - float(np.interp(point["bpp"], [p["bpp"] for p in plain], others))

    drawn = [
        above(mean, list(others)) for mean, *others in zip(point["draws"], *(p["draws"] for p in plain), strict=True)
    ]
    return above(point["mAP"], [p["mAP"] for p in plain]), *np.percentile(drawn, [5, 95]).tolist()


def draw(points: dict[str, list[dict]], path: Path) -> None:
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in points.items():
        if name == "uncompressed":
            axes.axhline(curve[0]["mAP"], color="#555555", linestyle="--", linewidth=1, label=name)
        else:
            axes.plot([p["bpp"] for p in curve], [p["mAP"] for p in curve], marker="o", label=name)
    axes.set_xlabel("rate (bits per pixel)")
    axes.set_ylabel("mAP of FastestDet")
    axes.grid(color="#DDDDDD")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="fastestdet-coco.onnx")
    parser.add_argument("coco", type=Path, help="folder with images/ and instances.json")
    parser.add_argument("run", type=Path, help="results of lora_comp.run over these images")
    words = parser.parse_args()
    scorer = Scorer(words.network, words.coco / "instances.json", Path(__file__).with_suffix(".yaml"))
    points = curves(scorer, words.run, words.coco / "images")
    line = [(p["bpp"], p["mAP"]) for p in points["plain"]]
    rates = {
        name: bd_rate(line, [(p["bpp"], p["mAP"]) for p in curve])
        for name, curve in points.items()
        if name not in ("uncompressed", "plain")
    }
    for name, curve in points.items():
        for p in curve:
            rate = f"{p['bpp']:.3f} bpp" if "bpp" in p else ""
            above = (
                "  mAP above plain {:+.3f}, 90 % interval {:+.3f} to {:+.3f}".format(*lead(points["plain"], p))
                if "draws" in p and name != "plain"
                else ""
            )
            print(f"{name:13}{p.get('setting', ''):>4} {rate:>10}  mAP {p['mAP']:.3f}  AP50 {p['AP50']:.3f}{above}")
    for name, rate in rates.items():
        print(f"BD-rate of {name} against the plain codec, at equal mAP: {rate:+.1f} %")
    (words.run / "detections.json").write_text(json.dumps({"points": points, "bd_rate": rates}, indent=1) + "\n")
    draw(points, words.run / "detections.png")


if __name__ == "__main__":
    main()
