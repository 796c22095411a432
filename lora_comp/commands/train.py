import copy
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_comp import zoo
from lora_comp.codecs import CODECS, build, load_codec, spec
from lora_comp.codecs.stf import STF
from lora_comp.codecs.tic_v import LAMBDAS
from lora_comp.data import Scenes
from lora_comp.errors import LoraCompError
from lora_comp.methods import METHODS
from lora_comp.settings import Choice, group, setting
from lora_comp.tasks import load_task
from lora_comp.tasks.rate import rate_lambda
from lora_comp.training import adapter, parallel, soap, start, start_stf
from lora_comp.training import codec as codec_training
from lora_comp.training.crops import SCALES, Crops
from lora_comp.training.detector import train_scenes_detector
from lora_comp.training.network import train_flowers, train_scenes
from lora_comp.weights import write_weights
from lora_comp.zoo import registry

CROP = 256  # windows divide its maps at every stride
HELD_OUT = 16  # images for validation of an adapter


@dataclass(frozen=True)
class TrainConfig:
    what: str = setting("codec", "what is trained", choices=("codec", "adapter", "network"))
    quality: list[int] | None = setting(
        None,
        "rate points of codecs and adapters, null: all from the highest; codecs after the first start from it; a codec "
        "of variable rate has none. Of alice and calice: those of the frozen codecs, null: the highest",
        low=1,
        filled=True,
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
    optimizer: str = setting("adam", "of adapters: Adam, or SGD with a momentum of 0.9", choices=("adam", "sgd"))
    schedule: str = setting(
        "cosine",
        "of adapters: the learning rate falls along a cosine, or to 0.3 of itself when a validation loss stays",
        choices=("cosine", "plateau"),
    )
    batch: int | None = setting(None, "images a step, over all processes", low=1)
    threads: int | None = setting(None, "of the processor; null: all", low=1)
    device: str | None = setting(None, "null: cuda where there is one", choices=("cpu", "cuda"))
    work: str = setting("runs", "folder of checkpoints and curves, from which the same command resumes", path=True)
    into: str | None = setting(None, "folder for the weights; null: the package's own zoo", path=True)
    overwrite: bool = setting(False, "replace weights that ship in the package")
    codec: Choice = group(
        "lora_comp.codecs",
        "tic-v",
        "the codec to train, or to train an adapter for; a codec starts from the file codec.weights, if it is given",
    )
    method: Choice = group("lora_comp.methods", "svd_lora", "the method whose adapter is trained")
    task: Choice = group("lora_comp.tasks", "cls", "the task that an adapter is trained for")


def train(config: TrainConfig) -> None:
    """Train codecs, task adapters or task networks. The same command resumes after a stop.

    Several GPUs: torchrun --nproc-per-node 4 -m lora_comp.train what=codec images=[imagenet] batch=64 minutes=600

    Examples:
      lora-comp train what=codec images=[photos,flowers/train] minutes=40
      lora-comp train what=codec codec=tic-v codec.weights=begun.safetensors images=[photos] steps=100000 batch=16
      lora-comp train what=adapter task=cls task.network=scenes minutes=4
      lora-comp train what=adapter method=alice method.target=3 codec=stf task=human images=[photos] steps=9000
      lora-comp train what=adapter method=calice codec=stf task=human images=[photos] steps=9000
      lora-comp train what=network network=flowers images=[flowers] steps=2000
    """
    if config.what != "network" and (config.minutes is None) == (config.steps is None):
        raise LoraCompError("give a budget: minutes=40 or steps=20000")
    if config.what != "adapter" and (config.optimizer, config.schedule) != ("adam", "cosine"):
        raise LoraCompError("optimizer= and schedule= are of what=adapter")
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


def rate_points(config: TrainConfig) -> dict[float | None, tuple[float, ...]]:
    """The qualities of each training: all of a codec of variable rate under None, else one. Raises LoraCompError for a
    quality that the codec has not."""
    name, entry = config.codec.name, CODECS[config.codec.name]
    if entry.variable and config.quality:
        raise LoraCompError(f"{name} is trained at all rates together: leave quality= out")
    if entry.variable:
        return {None: entry.qualities}
    chosen = config.quality or entry.qualities[::-1]
    return {quality: (quality,) for quality in chosen if spec(name, quality)}


def frozen_points(config: TrainConfig) -> list[float]:
    """The qualities at which a codec is frozen and adapted to other rates: by default the highest."""
    name = config.codec.name
    return [quality for quality in config.quality or CODECS[name].qualities[-1:] if spec(name, quality)]


def codecs(config: TrainConfig, device: torch.device) -> None:
    if not config.images:
        raise LoraCompError("a codec needs images to train on: images=[FOLDER,FOLDER]")
    if device.type == "cpu":
        soap.library()  # before images are read
    name, points, batch = config.codec.name, rate_points(config), config.batch or 8
    paths = {point: place(config, zoo.codec_path(name, point)) for point in points}
    begun, weights = beginning(config), config.codec.options.weights
    data, first = Crops(config.images, CROP, SCALES), None
    for point, qualities in points.items():
        if weights == "default" and first is None:
            initialise(begun, data.batch(32, 0), rate_lambda(LAMBDAS, qualities[len(qualities) // 2]))
        model = copy.deepcopy(first or begun).to(device)
        row = codec_training.train(
            model,
            Path(config.work) / paths[point].stem,
            data,
            qualities,
            batch=batch,
            lr=config.lr or 5e-4,
            minutes=config.minutes,
            steps=config.steps,
        )
        first = first or model
        if parallel.rank() == 0:
            card = {"codec": name, "quality": point, "crops": row["steps"] * batch, **of_rates(row, qualities)}
            write(paths[point], dict(model.named_parameters()), card | made_on(row, config, device))


def initialise(codec: Any, images: Tensor, lmbda: float) -> None:
    """Make a new codec a linear one, with the transform of images: see `start`."""
    (start_stf if isinstance(codec, STF) else start).initialise(codec, images, lmbda)


def beginning(config: TrainConfig) -> Any:
    """The codec that a training begins with: from a file, or with random weights."""
    name, weights = config.codec.name, config.codec.options.weights
    if weights in (None, "default"):
        return build(name)
    quality = (config.quality or CODECS[name].qualities)[0]
    return load_codec(name, quality, weights).requires_grad_()


def of_rates(row: dict, qualities: Sequence[float]) -> dict:
    """The part of a codec's card about its rates; takes what the last line of the curve has of each."""
    if len(qualities) == 1:
        return {"lambda": rate_lambda(LAMBDAS, qualities[0])}
    names = [(f"val_bpp_q{quality:g}", f"val_psnr_q{quality:g}") for quality in qualities]
    return {"lambdas": LAMBDAS, "val": [[round(row.pop(name), 4) for name in both] for both in names]}


def adapters(config: TrainConfig, device: torch.device) -> None:
    name, options = config.method.name, config.method.options
    method = METHODS.get(name)
    if method is None or method.pretrain is None:
        trained = [n for n, spec in METHODS.items() if spec.pretrain]
        raise LoraCompError(f"method={name} has no adapter to train; known are {', '.join(trained)}")
    task = load_task(**config.task.given()).to(device)
    keys: dict[float | None, str] = {}
    if method.rates is None:
        points = rate_points(config)
    else:
        points = {quality: method.rates(options, quality) for quality in frozen_points(config)}
        keys = {point: f"{task.key}-q{rates[0]:g}" for point, rates in points.items() if len(rates) == 1}
    paths = {
        point: place(config, zoo.adapter_path(config.codec.name, point, name, keys.get(point, task.key)))
        for point in points
    }
    batches, held_out = images(config.images, config.batch or parallel.size())
    for point, qualities in points.items():
        codec = load_codec(quality=point or qualities[0], **config.codec.given()).to(device)
        pretraining = method.pretrain(codec, options)
        tensors, row = adapter.train(
            pretraining,
            qualities,
            task,
            batches,
            Path(config.work) / paths[point].stem,
            lr=config.lr or pretraining.lr,
            minutes=config.minutes,
            steps=config.steps,
            optimizer=config.optimizer,
            held_out=held_out() if config.schedule == "plateau" else None,
        )
        card = {"codec": codec.name, "quality": point, "codec_hash": codec.hash.hex(), "method": name}
        for name in ("steps", "minutes"):
            row[name] += pretraining.card.get(name, 0)
        card |= {"task": task.key, **pretraining.card, **made_on(row, config, device)}
        write(paths[point], tensors, card)


def images(folders: list[str], count: int) -> tuple[Callable[[int], Tensor], Callable[[], Tensor]]:
    """Batches by step, and images held out: crops of the folders' images, or generated scenes where none is given."""
    if folders:
        data = Crops(folders, 192)
        return lambda step: data.batch(count, step), lambda: data.held_out(HELD_OUT)

    def scenes(split: str, first: int, count: int) -> Tensor:
        made = Scenes(split, first + count, 256, 0)
        return torch.stack([made[first + i].image for i in range(count)])

    return lambda step: scenes("train", step * count, count), lambda: scenes("val", 0, HELD_OUT)


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
