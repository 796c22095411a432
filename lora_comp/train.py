"""python -m lora_comp.train: make the weights that ship, or others like them.

    what=codec images=[photos,flowers/train] minutes=40
    what=adapter task=cls task.network=scenes minutes=4
    what=network network=flowers images=[flowers] steps=2000
    what=network network=scenes-det steps=4000

Several GPUs: torchrun --nproc-per-node 4 -m lora_comp.train what=codec images=[imagenet] batch=64 minutes=600
"""

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lora_comp import zoo
from lora_comp.config import load_config
from lora_comp.errors import LoraCompError
from lora_comp.program import report_errors
from lora_comp.training import parallel
from lora_comp.weights import write_weights
from lora_comp.zoo import registry

CROP = 128


@report_errors
def main(words: Sequence[str]) -> None:
    config = load_config("train", words)
    kinds = {"codec": codecs, "adapter": adapters, "network": network}
    if config.what not in kinds:
        raise LoraCompError(f"what={config.what} cannot be trained; known are {', '.join(kinds)}")
    if config.what != "network" and (config.minutes is None) == (config.steps is None):
        raise LoraCompError("give a budget: minutes=40 or steps=20000")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = parallel.start(config.device)
    try:
        kinds[config.what](config, Path(config.into) if config.into else None, device)
        if parallel.rank() == 0 and config.into is None:
            registry.write()
    finally:
        parallel.finish()


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{parallel.size()} x {torch.cuda.get_device_name(device)}"
    processes = f", {parallel.size()} processes" if parallel.size() > 1 else ""
    return f"{torch.get_num_threads()} thread(s) of a {platform.machine()} processor{processes}"


def made_on(row: dict, config, device: torch.device) -> dict:
    """The part of a card that tells how weights were made, and what the training's last lines say they reach."""
    reached = {name: round(value, 6) for name, value in row.items() if name not in ("steps", "minutes")}
    return {
        "steps": row["steps"],
        "minutes": round(row["minutes"], 1),
        "hardware": hardware(device),
        **reached,
        "data": ["/".join(Path(p).parts[-2:]) for p in config.images] or ["generated scenes"],
    }


def write(path: Path, tensors: Mapping[str, Tensor], card: dict) -> None:
    if parallel.rank() == 0:
        write_weights(path, tensors, card)


def codecs(config, into: Path | None, device: torch.device) -> None:
    from lora_comp.codecs import build
    from lora_comp.training import codec, start
    from lora_comp.training.crops import Crops

    if not config.images:
        raise LoraCompError("a codec needs images to train on: images=[FOLDER,FOLDER]")
    data, first = Crops(list(config.images), CROP), None
    for quality in config.quality:
        model = build(config.codec.name)
        if first is None:
            start.initialise(model, data.batch(64, 0))
        else:
            model.load_state_dict(first.state_dict())
        model.to(device)
        row = codec.train(
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
        path = zoo.codec_path(config.codec.name, quality)
        write(
            into / path.name if into else path,
            dict(model.named_parameters()),
            {
                "codec": config.codec.name,
                "quality": quality,
                "lambda": codec.LAMBDAS[quality - 1],
                **made_on(row, config, device),
            },
        )


def adapters(config, into: Path | None, device: torch.device) -> None:
    from lora_comp.codecs import load_codec
    from lora_comp.methods import METHODS
    from lora_comp.tasks import load_task
    from lora_comp.training import adapter

    given = dict(config.method)
    name = given.pop("name")
    method = METHODS.get(name)
    if method is None or method.pretrain is None:
        trained = [n for n, spec in METHODS.items() if spec.pretrain]
        raise LoraCompError(f"method={name} has no adapter to train; known are {', '.join(trained)}")
    task = load_task(**config.task).to(device)
    batches = images(list(config.images), config.batch or parallel.size())
    for quality in config.quality:
        codec = load_codec(config.codec.name, quality, config.codec.weights).to(device)
        path = zoo.adapter_path(codec.name, quality, name, task.key)
        pretraining = method.pretrain(codec, method.options(**given))
        folder, lr = Path(config.work) / path.stem, config.lr or 2e-2
        budget = {"minutes": config.minutes, "steps": config.steps}
        tensors, row = adapter.train(pretraining, quality, task, batches, folder, lr=lr, **budget)
        card = {"codec": codec.name, "quality": quality, "codec_hash": codec.hash.hex(), "method": name}
        card |= {"task": task.key, **pretraining.card, **made_on(row, config, device)}
        write(into / path.name if into else path, tensors, card)


def images(folders: list[str], count: int) -> Callable[[int], Tensor]:
    """Batches by step: crops of images of the folders, or generated scenes where none is given."""
    if folders:
        from lora_comp.training.crops import Crops

        data = Crops(folders, 192)
        return lambda step: data.batch(count, step)
    from lora_comp.data import Scenes

    def scenes(step: int) -> Tensor:
        made = Scenes("train", (step + 1) * count, 256, 0)
        return torch.stack([made[step * count + i].image for i in range(count)])

    return scenes


def network(config, into: Path | None, device: torch.device) -> None:
    from lora_comp.training.detector import train_scenes_detector
    from lora_comp.training.network import train_flowers, train_scenes

    if config.steps is None:
        raise LoraCompError("a network's budget is given in steps: steps=2600")
    if parallel.size() > 1:
        raise LoraCompError("a network is trained by one process, without torchrun")
    out, work = (into or zoo.ROOT / "networks") / f"{config.network}.safetensors", Path(config.work) / config.network
    if config.network == "scenes":
        train_scenes(out, work, config.steps)
    elif config.network in ("scenes-det", "scenes-seg"):
        train_scenes_detector(config.network == "scenes-seg", out, work, config.steps)
    elif len(config.images) != 1:
        raise LoraCompError("a network for images needs one folder with train/ and val/: images=[FOLDER]")
    else:
        train_flowers(config.images[0], out, work, config.steps)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
