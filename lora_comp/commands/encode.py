import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from lora_comp import api, bitstream
from lora_comp.codecs import CODECS, load_codec
from lora_comp.data import read_image
from lora_comp.engine import start_engine
from lora_comp.errors import LoraCompError
from lora_comp.files import check_output, write_file
from lora_comp.methods import annealed, frozen_quality, load_method, steps_of
from lora_comp.program import paths_read
from lora_comp.qualities import moved
from lora_comp.roi import region
from lora_comp.settings import Choice, argument, group, setting
from lora_comp.target import check_alone, ends_for, target_of
from lora_comp.tasks import load_task


@dataclass(frozen=True)
class EncodeConfig:
    image: str = argument("the image: PNG, JPEG, WebP, TIFF, ...")
    file: str = argument("the file to write, as cat.lcz")
    quality: float | None = setting(None, "rate point, 1 for the fewest bits; null: 2, unless a size is set", low=0)
    bpp: float | None = setting(None, "size of the file in bits per pixel, in place of quality", above=0)
    bytes: int | None = setting(None, "size of the file in bytes, in place of quality", low=1)
    psnr: float | None = setting(None, "PSNR of the decoded image in dB, in place of quality", above=0)
    max_bytes: int | None = setting(None, "a size in bytes that the file must not exceed, whatever else is set", low=1)
    roi: str | None = setting(
        None,
        "region of interest: boxes, of the objects that the task finds, or an image, white where it matters",
        path=True,
    )
    refine: int = setting(0, "steps of annealed rounding that refine the latents, with any method: 100, or 1000", low=0)
    overwrite: bool = setting(False, "replace a file that exists and that lora-comp did not write")
    codec: Choice = group("lora_comp.codecs", "tic-v", "the frozen codec")
    method: Choice = group("lora_comp.methods", "svd_lora", "how the codec is adapted")
    task: Choice = group("lora_comp.tasks", "cls", "what must survive compression, or several as [cls,human]")
    engine: Choice = group("lora_comp.engine", "default", "test-time fine-tuning")


def encode(config: EncodeConfig) -> None:
    """Encode an image to a file, adapted to the image and to a task.

    Examples:
      lora-comp encode cat.png cat.lcz task=cls quality=2
      lora-comp encode street.png street.lcz task=open task.network=detector.onnx engine.steps=40
      lora-comp encode cat.png cat.lcz task=human method=none refine=300
      lora-comp encode cat.png cat.lcz codec=tic-v task=human bytes=3000
      lora-comp encode cat.png cat.lcz codec=tic-v task=human method=calice method.adapter=rates.safetensors quality=2.5
      lora-comp encode cat.png cat.lcz task=cls method=svd_lora method.base=prompts.safetensors
    """
    engine = config.engine.options
    check_alone(quality=config.quality, bpp=config.bpp, bytes=config.bytes, psnr=config.psnr)
    target = target_of(config.bpp, config.bytes, config.psnr, config.max_bytes)
    check_output(config.file, paths_read(config, "file"), config.overwrite, bitstream.is_magic)
    image = read_image(config.image)
    device = start_engine(engine)
    chosen, quality = config.method.given(), config.quality
    if "parts" in chosen:
        raise LoraCompError(f"encode takes one method, not {' and '.join(chosen['parts'])}: run compares several")
    if quality is None and not target:
        quality = 2.0
    frozen = frozen_quality(config.codec.name, **chosen) or quality or CODECS[config.codec.name].qualities[-1]
    codec = load_codec(quality=frozen, **config.codec.given()).to(device)
    task = load_task(**config.task.given()).to(device)
    method = annealed(load_method(codec=codec, task=task.key, **chosen), config.refine)
    if quality is not None:
        codec, method = moved(codec, method, quality)
    if target:
        ends_for(target, codec, method)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=method is None or not console.is_terminal) as progress:
        bar = progress.add_task("adapting", total=steps_of(method, engine.steps))
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
            bpp=config.bpp,
            bytes=config.bytes,
            psnr=config.psnr,
            max_bytes=config.max_bytes,
        )
    write_file(config.file, coded.data)
    found = f"quality {coded.quality:g}, " if target else ""
    before = "plain" if config.method.given().get("base") is None else "of the base"
    plain = "" if coded.loss_before is None else f"{coded.loss_before:.4f} {before}, "
    print(
        f"{config.file}: {len(coded.data)} bytes, {coded.bpp:.3f} bpp, {found}{coded.method}, objective "
        f"{plain}{coded.loss_after:.4f} here",
        file=sys.stdout if Path(config.file).is_file() else sys.stderr,  # a pipe takes the file alone
    )
