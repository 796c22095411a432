"""lora-comp encode, decode, info: one image, one file; zoo, import: the weights there are."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_comp.errors import LoraCompError
from lora_comp.program import report_errors

USAGE = """usage: lora-comp encode PICTURE FILE.lcz [task=cls] [quality=2] [method=svd_lora] [engine.steps=10] ...
       lora-comp decode FILE.lcz PICTURE.png [adapter=PATH] [weights=PATH] [max_pixels=268435456]
       lora-comp info FILE.lcz
       lora-comp zoo [fetch NAME]
       lora-comp import CHECKPOINT --system tic_svdlora [quality=1] [into=FOLDER]"""


def encode(source: str, file: str, words: Sequence[str]) -> None:
    from rich.progress import Progress

    from lora_comp import api
    from lora_comp.codecs import load_codec
    from lora_comp.config import load_config, start_engine
    from lora_comp.data import read_image
    from lora_comp.files import write_file
    from lora_comp.methods import load_method
    from lora_comp.roi import region
    from lora_comp.tasks import load_task

    config = load_config("encode", words)
    image = read_image(source)
    device, engine = start_engine(config.engine), config.engine
    codec = load_codec(config.codec.name, config.quality, config.codec.weights).to(device)
    task = load_task(**config.task).to(device)
    method = load_method(codec=codec, task=task.key, **config.method)
    with Progress(transient=True, disable=method is None) as progress:
        bar = progress.add_task("adapting", total=engine.steps)
        coded = api.encode(
            image,
            codec,
            task,
            method,
            steps=engine.steps,
            lr=engine.lr,
            seed=engine.seed,
            on_step=lambda step, _: progress.update(bar, completed=step),
            recipe=engine.recipe,
            roi=None if config.roi is None else region(config.roi, image, task),
            tile=engine.tile,
        )
    write_file(file, coded.data)
    print(
        f"{file}: {len(coded.data)} bytes, {coded.bpp:.3f} bpp, {coded.method}, objective "
        f"{coded.loss_before:.4f} plain, {coded.loss_after:.4f} here"
    )


def decode(file: str, image: str, words: Sequence[str]) -> None:
    from lora_comp import api, bitstream
    from lora_comp.codecs import load_codec
    from lora_comp.data import write_image

    options = dict(word.partition("=")[::2] for word in words)
    if unknown := set(options) - {"adapter", "weights", "max_pixels"}:
        raise LoraCompError(f"decode takes adapter=PATH, weights=PATH and max_pixels=NUMBER, not {min(unknown)}")
    limit = options.get("max_pixels", str(bitstream.MAX_PIXELS))
    if not limit.isdecimal() or len(limit) > 20:
        raise LoraCompError(f"max_pixels must be a whole number, not {limit!r}")
    data, max_pixels = read(file), int(limit)
    codec = None
    if "weights" in options:
        header, _ = bitstream.read(data, max_pixels)
        codec = load_codec(header.codec, header.quality, options["weights"])
    write_image(image, api.decode(data, codec, adapter=options.get("adapter"), max_pixels=max_pixels))


def info(file: str) -> None:
    from lora_comp import bitstream

    for name, value in bitstream.info(read(file)).items():
        print(f"{name:14} {value:.4f}" if isinstance(value, float) else f"{name:14} {value}")


def import_(checkpoint: str, words: Sequence[str]) -> None:
    from lora_comp.import_checkpoint import import_checkpoint

    rest = list(words)
    if "--system" in rest[:-1]:
        at = rest.index("--system")
        rest[at : at + 2] = [f"system={rest[at + 1]}"]
    options = {"quality": "1", "into": "."} | dict(word.removeprefix("--").partition("=")[::2] for word in rest)
    if set(options) != {"system", "quality", "into"} or not all(options.values()):
        raise LoraCompError("import takes --system NAME, quality=1 and into=FOLDER after the checkpoint")
    if options["quality"] not in ("1", "2", "3", "4"):
        raise LoraCompError(f"quality must be 1 to 4, not {options['quality']}")
    for line in import_checkpoint(Path(checkpoint), options["system"], int(options["quality"]), Path(options["into"])):
        print(line)


def read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise LoraCompError(f"cannot read {file}: {error.strerror}") from None


@functools.partial(report_errors, stopped="stopped; nothing was written")
def command(words: Sequence[str]) -> None:
    match list(words):
        case ["encode", image, file, *rest]:
            encode(image, file, rest)
        case ["decode", file, image, *rest]:
            decode(file, image, rest)
        case ["info", file]:
            info(file)
        case ["zoo", *rest]:
            from lora_comp.zoo.__main__ import command as zoo

            zoo(rest)
        case ["import", checkpoint, *rest]:
            import_(checkpoint, rest)
        case ["--help"] | ["-h"]:
            print(USAGE)
        case _:
            raise LoraCompError("the words do not fit a command: lora-comp --help shows them")


def main() -> None:
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
