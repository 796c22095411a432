from dataclasses import dataclass

from lora_comp import api, bitstream
from lora_comp.data import write_image
from lora_comp.decoding import with_weights
from lora_comp.files import check_output, read_file
from lora_comp.program import paths_read
from lora_comp.settings import argument, setting


@dataclass(frozen=True)
class DecodeConfig:
    file: str = argument("a file that `lora-comp encode` wrote")
    image: str = argument("the image to write, as cat.png")
    method: str | None = setting(
        None,
        "null: that of the file; none: the plain codec, which shows what an adapted file has for people",
        choices=("none",),
    )
    adapter: str | None = setting(None, "the adapter that the file was encoded with, where it does not ship", path=True)
    base: str | None = setting(
        None, "the adapter that the file was encoded on top of (method.base), where it does not ship", path=True
    )
    weights: str | None = setting(None, "the codec's weights, where they do not ship", path=True)
    overwrite: bool = setting(False, "replace an image that exists; the files that are read are never replaced")
    max_pixels: int = setting(bitstream.MAX_PIXELS, "a larger image is refused", low=1, high=2**63 - 1)


def decode(config: DecodeConfig) -> None:
    """Decode a file to an image.

    Examples:
      lora-comp decode cat.lcz cat.png
      lora-comp decode cat.lcz for-people.png method=none
      lora-comp decode cat.lcz cat.png weights=tic.safetensors adapter=tic-adapter.safetensors
      lora-comp decode cat.lcz cat.png base=prompts.safetensors
    """
    check_output(config.image, paths_read(config, "image"), config.overwrite)
    data = read_file(config.file)
    codec = with_weights(data, config.weights, config.max_pixels)
    image = api.decode(data, codec, config.method, config.adapter, config.max_pixels, config.base)
    write_image(config.image, image)
