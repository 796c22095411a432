"""python -m lora_comp.train: make the weights that ship, or others like them.

    what=codec pictures=[photos,flowers/train] minutes=40
    what=adapter task=cls task.network=scenes minutes=4
    what=network network=flowers pictures=[flowers] steps=2000
"""
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lora_comp.cli import report_errors
from lora_comp.config import load_config
from lora_comp.errors import LoraCompError

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
    kinds[config.what](config, Path(config.into) if config.into else None)


def made_on(row: dict, config) -> dict:
    """The part of a card that tells how weights were made."""
    hardware = f"{torch.get_num_threads()} thread(s) of a {platform.machine()} processor"
    return {"steps": row["steps"], "minutes": round(row["minutes"], 1), "hardware": hardware,
            "data": ["/".join(Path(p).parts[-2:]) for p in config.pictures] or ["generated scenes"]}


def codecs(config, into: Path | None) -> None:
    from lora_comp import zoo
    from lora_comp.codecs import build
    from lora_comp.training import codec, start
    from lora_comp.training.pictures import Crops
    if not config.pictures:
        raise LoraCompError("a codec needs pictures to train on: pictures=[FOLDER,FOLDER]")
    data, first = Crops(list(config.pictures), CROP), None
    for quality in config.quality:
        model = build(config.codec.name)
        if first is None:
            start.initialise(model, data.batch(64, 0))
        else:
            model.load_state_dict(first.state_dict())
        row = codec.train(
            model, Path(config.work) / f"{config.codec.name}-q{quality}", data, quality, batch=config.batch or 8,
            lr=config.lr or (1e-3 if first is None else 4e-4), minutes=config.minutes, steps=config.steps)
        first = first or model
        path = zoo.codec_path(config.codec.name, quality)
        zoo.write_weights(into / path.name if into else path, dict(model.named_parameters()), {
            "codec": config.codec.name, "quality": quality, "lambda": codec.LAMBDAS[quality - 1],
            **made_on(row, config)})


def adapters(config, into: Path | None) -> None:
    from lora_comp import zoo
    from lora_comp.codecs import load_codec
    from lora_comp.tasks import load_task
    from lora_comp.training import adapter
    task = load_task(**config.task)
    batches = pictures(list(config.pictures), config.batch or 1)
    for quality in config.quality:
        codec = load_codec(config.codec.name, quality, config.codec.weights)
        name = config.method.name
        path = zoo.adapter_path(codec.name, quality, name, task.key)
        tensors, row = adapter.train(
            codec, name, task, batches, Path(config.work) / path.stem, lr=config.lr or 2e-2, rank=config.method.rank,
            alpha=config.method.alpha, minutes=config.minutes, steps=config.steps)
        zoo.write_weights(into / path.name if into else path, tensors, {
            "codec": codec.name, "quality": quality, "codec_hash": codec.hash.hex(), "method": name, "task": task.key,
            "rank": config.method.rank, "alpha": config.method.alpha, **made_on(row, config)})


def pictures(folders: list[str], count: int) -> Callable[[int], Tensor]:
    """Batches by step: crops of pictures of the folders, or generated scenes where none is given."""
    if folders:
        from lora_comp.training.pictures import Crops
        data = Crops(folders, 192)
        return lambda step: data.batch(count, step)
    from lora_comp.data import Scenes

    def scenes(step: int) -> Tensor:
        made = Scenes("train", (step + 1) * count, 256, 0)
        return torch.stack([made[step * count + i].image for i in range(count)])
    return scenes


def network(config, into: Path | None) -> None:
    from lora_comp.networks import ZOO
    from lora_comp.training.network import train_flowers, train_scenes
    if config.steps is None:
        raise LoraCompError("a network's budget is given in steps: steps=2600")
    out, work = (into or ZOO) / f"{config.network}.safetensors", Path(config.work) / config.network
    if config.network == "scenes":
        train_scenes(out, work, config.steps)
    elif len(config.pictures) != 1:
        raise LoraCompError("a network for pictures needs one folder with train/ and val/: pictures=[FOLDER]")
    else:
        train_flowers(config.pictures[0], out, work, config.steps)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
