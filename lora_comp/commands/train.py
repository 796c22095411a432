import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_comp import zoo
from lora_comp.codecs import build, load_codec
from lora_comp.data import Scenes
from lora_comp.errors import LoraCompError
from lora_comp.methods import METHODS
from lora_comp.settings import Choice, group, setting
from lora_comp.tasks import load_task
from lora_comp.training import adapter, parallel, start
from lora_comp.training import codec as codec_training
from lora_comp.training.crops import Crops
from lora_comp.training.detector import train_scenes_detector
from lora_comp.training.network import train_flowers, train_scenes
from lora_comp.weights import write_weights
from lora_comp.zoo import registry

CROP = 128


@dataclass(frozen=True)
class TrainConfig:
    what: str = setting("codec", "what is trained", choices=("codec", "adapter", "network"))
    quality: list[int] = setting(
        [4, 3, 2, 1], "rate points of codecs and adapters; codecs after the first start from it", low=1, filled=True
    )
    images: list[str] = setting(
        [],
        "folders of training images, as ImageNet, COCO, OpenImages; of a network one with train/ and val/",
        path=True,
    )
    network: str = setting("scenes", "scenes, scenes-det, scenes-seg of generated scenes, or flowers, of `images`")
    minutes: float | None = setting(None, "budget of each training", above=0)
    steps: int | None = setting(None, "budget of each training, in place of minutes", low=1)
    lr: float | None = setting(None, "learning rate; null: the default of what is trained", above=0)
    batch: int | None = setting(None, "images a step, over all processes", low=1)
    threads: int | None = setting(None, "of the processor; null: all", low=1)
    device: str | None = setting(None, "null: cuda where there is one", choices=("cpu", "cuda"))
    work: str = setting("runs", "folder of checkpoints and curves, from which the same command resumes", path=True)
    into: str | None = setting(None, "folder for the weights; null: the package's own zoo", path=True)
    overwrite: bool = setting(False, "replace weights that ship in the package")
    codec: Choice = group("lora_comp.codecs", "tic-s", "the codec to train, or to train an adapter for")
    method: Choice = group("lora_comp.methods", "svd_lora", "the method whose adapter is trained")
    task: Choice = group("lora_comp.tasks", "cls", "the task that an adapter is trained for")


def train(config: TrainConfig) -> None:
    """Train codecs, task adapters or task networks. The same command resumes after a stop.

    Several GPUs: torchrun --nproc-per-node 4 -m lora_comp.train what=codec images=[imagenet] batch=64 minutes=600

    Examples:
      lora-comp train what=codec images=[photos,flowers/train] minutes=40
      lora-comp train what=adapter task=cls task.network=scenes minutes=4
      lora-comp train what=network network=flowers images=[flowers] steps=2000
    """
    if config.what != "network" and (config.minutes is None) == (config.steps is None):
        raise LoraCompError("give a budget: minutes=40 or steps=20000")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = parallel.start(config.device)
    try:
        kinds = {"codec": codecs, "adapter": adapters, "network": network}
        kinds[config.what](config, device)
        if parallel.rank() == 0 and config.into is None:
            registry.write()
    finally:
        parallel.finish()


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{parallel.size()} x {torch.cuda.get_device_name(device)}"
    processes = f", {parallel.size()} processes" if parallel.size() > 1 else ""
    return f"{torch.get_num_threads()} thread(s) of a {platform.machine()} processor{processes}"


def made_on(row: dict, config: TrainConfig, device: torch.device) -> dict:
    """The part of a card that says how weights were made, and what they reach by the last line of the curve."""
    reached = {name: round(value, 6) for name, value in row.items() if name not in ("steps", "minutes")}
    return {
        "steps": row["steps"],
        "minutes": round(row["minutes"], 1),
        "hardware": hardware(device),
        **reached,
        "data": ["/".join(Path(p).parts[-2:]) for p in config.images] or ["generated scenes"],
    }


def place(config: TrainConfig, path: Path) -> Path:
    """Where weights of the zoo's `path` go. Raises LoraCompError for weights that ship, unless they may be replaced:
    files that were coded with them would no longer decode."""
    if config.into:
        return Path(config.into) / path.name
    if not config.overwrite and registry.ships(path):
        raise LoraCompError(
            f"{path.stem} ships in the package: into=FOLDER writes beside it, overwrite=true replaces it"
        )
    return path


def write(path: Path, tensors: Mapping[str, Tensor], card: dict) -> None:
    if parallel.rank() == 0:
        write_weights(path, tensors, card)


def codecs(config: TrainConfig, device: torch.device) -> None:
    if not config.images:
        raise LoraCompError("a codec needs images to train on: images=[FOLDER,FOLDER]")
    paths = {quality: place(config, zoo.codec_path(config.codec.name, quality)) for quality in config.quality}
    data, first = Crops(config.images, CROP), None
    for quality, path in paths.items():
        model = build(config.codec.name)
        if first is None:
            start.initialise(model, data.batch(64, 0))
        else:
            model.load_state_dict(first.state_dict())
        model.to(device)
        row = codec_training.train(
            model,
            Path(config.work) / f"{config.codec.name}-q{quality}",
            data,
            quality,
            batch=config.batch or 8,
            lr=config.lr or (1e-3 if first is None else 4e-4),
            minutes=config.minutes,
            steps=config.steps,
        )
        first = first or model
        write(
            path,
            dict(model.named_parameters()),
            {
                "codec": config.codec.name,
                "quality": quality,
                "lambda": codec_training.LAMBDAS[quality - 1],
                **made_on(row, config, device),
            },
        )


def adapters(config: TrainConfig, device: torch.device) -> None:
    name, options = config.method.name, config.method.options
    method = METHODS.get(name)
    if method is None or method.pretrain is None:
        trained = [n for n, spec in METHODS.items() if spec.pretrain]
        raise LoraCompError(f"method={name} has no adapter to train; known are {', '.join(trained)}")
    task = load_task(**config.task.given()).to(device)
    paths = {q: place(config, zoo.adapter_path(config.codec.name, q, name, task.key)) for q in config.quality}
    batches = images(config.images, config.batch or parallel.size())
    for quality, path in paths.items():
        codec = load_codec(quality=quality, **config.codec.given()).to(device)
        pretraining = method.pretrain(codec, options)
        tensors, row = adapter.train(
            pretraining,
            quality,
            task,
            batches,
            Path(config.work) / path.stem,
            lr=config.lr or 2e-2,
            minutes=config.minutes,
            steps=config.steps,
        )
        card = {"codec": codec.name, "quality": quality, "codec_hash": codec.hash.hex(), "method": name}
        card |= {"task": task.key, **pretraining.card, **made_on(row, config, device)}
        write(path, tensors, card)


def images(folders: list[str], count: int) -> Callable[[int], Tensor]:
    """Batches by step: crops of images of the folders, or generated scenes where none is given."""
    if folders:
        data = Crops(folders, 192)
        return lambda step: data.batch(count, step)

    def scenes(step: int) -> Tensor:
        made = Scenes("train", (step + 1) * count, 256, 0)
        return torch.stack([made[step * count + i].image for i in range(count)])

    return scenes


def network(config: TrainConfig, device: torch.device) -> None:
    if config.steps is None:
        raise LoraCompError("a network's budget is given in steps: steps=2600")
    if parallel.size() > 1:
        raise LoraCompError("a network is trained by one process, without torchrun")
    out, work = place(config, zoo.network_path(config.network)), Path(config.work) / config.network
    if config.network == "scenes":
        train_scenes(out, work, config.steps)
    elif config.network in ("scenes-det", "scenes-seg"):
        train_scenes_detector(config.network == "scenes-seg", out, work, config.steps)
    elif len(config.images) != 1 or not all((Path(config.images[0]) / split).is_dir() for split in ("train", "val")):
        raise LoraCompError(
            "a network for images needs one folder with train/ and val/, each with a folder of images for each class: "
            "images=[FOLDER]"
        )
    else:
        train_flowers(config.images[0], out, work, config.steps)
