"""Mirror COCO images and their boxes, for a second set of images to score a detector on.

    python examples/mirror.py COCO MIRRORED

COCO is a folder with images/ and instances.json. MIRRORED receives the same, with PNG images and without masks.
"""

import argparse
import json
from pathlib import Path

from lora_comp.data import read_image, write_image


def mirror(coco: Path, mirrored: Path) -> None:
    (mirrored / "images").mkdir(parents=True, exist_ok=True)
    truth, widths = json.loads((coco / "instances.json").read_text()), {}
    for facts in truth["images"]:
        image = read_image(coco / "images" / facts["file_name"])
        widths[facts["id"]] = image.shape[2]
        facts["file_name"] = Path(facts["file_name"]).with_suffix(".png").name
        write_image(mirrored / "images" / facts["file_name"], image.flip(2))
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [widths[annotation["image_id"]] - x - width, y, width, height]
        annotation.pop("segmentation", None)
    (mirrored / "instances.json").write_text(json.dumps(truth))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", type=Path)
    parser.add_argument("mirrored", type=Path)
    mirror(**vars(parser.parse_args()))
