from dataclasses import asdict, dataclass
from typing import Any

from rich.progress import Progress

from lora_comp import api
from lora_comp.codecs import load_codec
from lora_comp.data import read_image
from lora_comp.engine import EngineConfig, start_engine
from lora_comp.files import write_file
from lora_comp.methods import load_method
from lora_comp.roi import region
from lora_comp.settings import argument, group, setting
from lora_comp.tasks import load_task


@dataclass(frozen=True)
class EncodeConfig:
    image: str = argument("the image: PNG, JPEG, WebP, TIFF, ...")
    file: str = argument("the file to write, as cat.lcz")
    quality: int = setting(2, "rate point, 1 for the fewest bits", low=0)
    roi: str | None = setting(
        None,
        "region of interest: boxes, of the objects that the task finds, or an image, white where it matters",
        path=True,
    )
    codec: Any = group("lora_comp.codecs", "tic-s", "the frozen codec")
    method: Any = group("lora_comp.methods", "svd_lora", "how the codec is adapted")
    task: Any = group("lora_comp.tasks", "cls", "what must survive compression, or several as [cls,human]")
    engine: EngineConfig = group("lora_comp.engine", "default", "test-time fine-tuning")


def encode(config: EncodeConfig) -> None:
    """Encode an image to a file, adapted to the image and to a task.

    Examples:
      lora-comp encode cat.png cat.lcz task=cls quality=2
      lora-comp encode street.png street.lcz task=open task.network=detector.onnx engine.steps=40
    """
    engine = config.engine
    image = read_image(config.image)
    device = start_engine(engine)
    codec = load_codec(config.codec.name, config.quality, config.codec.weights).to(device)
    task = load_task(**asdict(config.task)).to(device)
    method = load_method(codec=codec, task=task.key, **asdict(config.method))
    with Progress(transient=True, disable=method is None) as progress:
        bar = progress.add_task("adapting", total=engine.steps)
        coded = api.encode(
            image,
            codec,
            task,
            method,
            engine.steps,
            engine.lr,
            engine.seed,
            lambda step, _: progress.update(bar, completed=step),
            engine.recipe,
            None if config.roi is None else region(config.roi, image, task),
            engine.tile,
        )
    write_file(config.file, coded.data)
    print(
        f"{config.file}: {len(coded.data)} bytes, {coded.bpp:.3f} bpp, {coded.method}, objective "
        f"{coded.loss_before:.4f} plain, {coded.loss_after:.4f} here"
    )
