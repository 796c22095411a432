"""Imports neither torch nor numpy before `bits` asks for them, so that a folder of files is listed in a moment."""

import io
from dataclasses import dataclass
from pathlib import Path

from lora_comp import bitstream
from lora_comp.errors import LoraCompError
from lora_comp.files import check_output, read_file, write_file
from lora_comp.program import paths_read
from lora_comp.settings import argument, setting

SUFFIXES = (".png", ".pdf", ".svg", ".npy")


@dataclass(frozen=True)
class InfoConfig:
    file: str = argument("a file that `lora-comp encode` wrote")
    bits: str | None = setting(
        None,
        "where the bits go: an image to write, as bits.png or bits.pdf, or an array (h, w), as bits.npy",
        path=True,
    )
    weights: str | None = setting(None, "for bits: the codec's weights, where they do not ship", path=True)
    overwrite: bool = setting(False, "replace an image or array that exists")


def info(config: InfoConfig) -> None:
    """Print what the header of a file says: size, codec, method and the bytes of each section.

    Examples:
      lora-comp info cat.lcz
      lora-comp info cat.lcz bits=bits.png
      lora-comp info results/cls-scenes-svd_lora/files/scene-val-0-000000-cls-tic-v-q2-svd_lora.lcz
    """
    if config.bits is None and config.weights:
        raise LoraCompError("weights= is for bits=: the header is read without them")
    if config.bits is not None:
        check_output(config.bits, paths_read(config, "bits"), config.overwrite)
        if Path(config.bits).suffix.lower() not in SUFFIXES:
            raise LoraCompError(f"bits={config.bits}: name a file that ends in {', '.join(SUFFIXES)}")
    for name, value in bitstream.info(config.file).items():
        print(f"{name:14} {value:.4f}" if isinstance(value, float) else f"{name:14} {value}")
    if config.bits is not None:
        write_bits(config, config.bits)


def write_bits(config: InfoConfig, path: str) -> None:
    import numpy as np

    from lora_comp import api
    from lora_comp.decoding import codec_of_file, with_weights
    from lora_comp.report.plots import bits_plot

    data = read_file(config.file)
    header, _ = bitstream.read(data)
    codec = codec_of_file(header, with_weights(data, config.weights))
    bits = api.bit_map(data, codec)
    if path.lower().endswith(".npy"):
        array = io.BytesIO()
        np.save(array, bits)
        write_file(path, array.getvalue())
    else:
        bits_plot(bits, (header.height, header.width), codec.latent_stride, path)
    rows, columns = bits.shape
    print(f"{path}: {bits.sum() / 8:.1f} bytes in {rows}x{columns} positions, at most {bits.max():.1f} bits in one")
