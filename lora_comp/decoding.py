"""Opening of files: their header, and the codec that decodes them, restored by their method."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lora_comp import bitstream
from lora_comp.codecs import CODECS, at_quality, load_codec, spec
from lora_comp.codecs.codec import title
from lora_comp.entropy.coder import CodedLatents
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods import NONE, Method, method_of_file


@contextmanager
def context(gradients: bool) -> Iterator[None]:
    """PyTorch as the codec needs it, whatever contexts are around the call."""
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        try:
            yield
        except RuntimeError as error:
            if "Inference tensors" not in str(error):
                raise
            raise LoraCompError(
                "the codec or the task was made under torch.inference_mode(): load it outside"
            ) from None


class Opened(NamedTuple):
    """A file: the codec that decodes it, its latents, and the size (H, W) of its image."""

    codec: Any
    latents: CodedLatents
    size: tuple[int, int]


def opened(
    data: bytes,
    codec: Any,
    method: Method | str | None,
    adapter: str | Path | None,
    max_pixels: int,
    base: str | Path | None = None,
) -> Opened:
    """Read a file and restore its codec. For arguments and errors see `api.decode`."""
    header, sections = bitstream.read(data, max_pixels)
    codec = codec_of_file(header, codec)
    if isinstance(method, str) and method != NONE:
        raise LoraCompError(f"a file says itself which method it has: method may be {NONE!r} or None, not {method!r}")
    if header.method != NONE and not isinstance(method, str):
        given = (method, getattr(method, "base", None))  # the file may be that of the base alone
        found = next((one for one in given if one is not None and _wrote(one, header)), None)
        if found is None:
            found = method_of_file(header.method, header.adapter_hash, codec, adapter, header.base, base)
        codec = found.restore(codec, sections.payload)
    if codec.output.features != header.features:
        stored, output = header.features or "an image", codec.output.features or "an image"
        raise BitstreamError(f"the file holds {stored}, but its codec decodes to {output}")
    latents = CodedLatents(sections.latents, header.symbols_crc, sections.hints)
    return Opened(codec, latents, (header.height, header.width))


def _wrote(method: Method, header: bitstream.Header) -> bool:
    """Whether a method, with its adapter and on its base, is that of a file."""
    base = getattr(method, "base", None)
    own = method.name, method.identity, None if base is None else (base.name, base.identity)
    return own == (header.method, header.adapter_hash, header.base)


def codec_of_file(header: bitstream.Header, codec: Any) -> Any:
    """`codec`, or the one that the header names. Raises BitstreamError if its weights are not those of the file."""
    if codec is None:
        try:
            variable = spec(header.codec, header.quality).variable
            codec = _loaded(header.codec, None if variable else header.quality)
        except LoraCompError as error:
            raise BitstreamError(f"the file's codec cannot be loaded: {error}") from None
    if codec.hash != header.codec_hash:
        raise BitstreamError(
            f"the file needs other weights of {title(header.codec, codec.rate_point)} ({header.codec_hash.hex()}) than "
            f"those loaded ({codec.hash.hex()})"
        )
    if codec.rate_point is not None:
        return codec
    try:
        return at_quality(codec, header.quality)
    except LoraCompError as error:
        raise BitstreamError(f"the file's header is not valid: {error}") from None


@lru_cache(maxsize=8)
def _loaded(name: str, rate_point: float | None) -> Any:
    """The codec whose weights in the package are for a rate point, or for all."""
    return load_codec(name, CODECS[name].qualities[0] if rate_point is None else rate_point)


def with_weights(data: bytes, weights: str | None, max_pixels: int = bitstream.MAX_PIXELS) -> Any:
    """The codec of a file with weights that are not in the package; None for those that are.

    Raises BitstreamError as `bitstream.read`, and LoraCompError as `load_codec`.
    """
    if weights is None:
        return None
    header, _ = bitstream.read(data, max_pixels)
    return load_codec(header.codec, header.quality, weights)
