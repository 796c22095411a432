"""lora-comp import: convert a published checkpoint to safetensors files of a codec and, if present, its adapter.

The files are in float32, so that results are those of the checkpoint.
"""

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from lora_comp.codecs import load_codec, spec
from lora_comp.errors import LoraCompError
from lora_comp.files import check_output
from lora_comp.reference import from_reference, system_of
from lora_comp.weights import write_weights


def import_checkpoint(
    path: Path, system: str, quality: int, into: Path, overwrite: bool = False, target: float | None = None
) -> list[str]:
    """Write the weights of a checkpoint to safetensors files in `into`.

    Args:
        path: a file of torch.save: a state dict, or a dict with one under "state_dict".
        system: a name of `reference.SYSTEMS`.
        quality: the rate point of the codec to register it under.
        target: the quality of an adapter that moves the codec to another rate.
    Returns:
        For each file a line with the settings that load it.
    Raises:
        LoraCompError: an unknown system, a quality that its codec has not, a file that is not its checkpoint, or files
            that cannot be written, or exist without `overwrite`.
    """
    codec, about = system_of(system).codec, system_of(system).adapter
    spec(codec, quality)
    module = from_reference(system, read_checkpoint(path))
    tensors, adapter = parts(module)
    card = {"codec": codec, "quality": quality, "system": system, "checkpoint": path.name}
    codec_file = into / f"{path.name.split('.')[0]}.safetensors"
    adapter_file = codec_file.with_name(f"{codec_file.stem}-adapter.safetensors")
    if into.is_dir():
        for file in [codec_file, adapter_file][: 2 if adapter else 1]:
            check_output(file, [path], overwrite)
    write_weights(codec_file, tensors, card, torch.float32)
    words = f"codec={codec} codec.weights={codec_file} quality={quality}"
    if not adapter:
        return [f"{codec_file}: use it with {words}"]
    rank = next((len(p) for name, p in adapter.items() if name.endswith(".S")), None)
    card |= {"codec_hash": load_codec(codec, quality, codec_file).hash.hex(), **about}
    card |= {} if rank is None else {"rank": rank}
    write_weights(adapter_file, adapter, card | ({} if target is None else {"target": target}), torch.float32)
    with_words = f"method={about['method']} method.adapter={adapter_file}"
    return [f"{codec_file}: use it with {words}", f"{adapter_file}: and with {with_words}"]


def parts(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the codec in a module of `from_reference`, and of its adapter, low-rank layers or prompts."""
    codec: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for name, value in module.named_parameters():
        if ".prompts." in name:
            adapter[name.replace(".prompts.", ".")] = value
        elif name.endswith((".U", ".S", ".V")):
            adapter[name] = value
        else:
            codec[re.sub(r"^(g_a|g_s)\.layers\.", r"\1.", name).replace(".layer.", ".")] = value
    return codec, adapter


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name. Only tensors are unpickled. Raises LoraCompError for any other file."""
    if not path.is_file():
        raise LoraCompError(f"{path} is not a file; `lora-comp zoo` lists published checkpoints")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
        if not any(name.endswith("data.pkl") for name in members):
            checkpoints = [name for name in members if name.endswith((".pth", ".pt", ".tar"))]
            raise LoraCompError(
                f"{path} is an archive: unpack it and import one of its {len(checkpoints)} checkpoints"
                + (f", such as {checkpoints[0]}" if checkpoints else "")
            )
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (
        UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        IndexError,
        AttributeError,
        TypeError,
    ) as error:
        raise LoraCompError(
            f"{path} is not a checkpoint of tensors that torch.load can read safely ({type(error).__name__})"
        ) from None
    state = stored.get("state_dict", stored) if isinstance(stored, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise LoraCompError(f"{path} has no state dict, neither as its content nor under 'state_dict'")
    return state
