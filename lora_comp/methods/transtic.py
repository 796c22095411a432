"""TransTIC: prompts that turn a codec for people into one for machines.

Chen et al., "Transferring Transformer-based Image Compression from Human Perception to Machine Perception", ICCV 2023.
The codec is frozen. Attention in the windows of its Swin blocks gets more keys and values, the prompts
(`ops.swin_block.prompted_swin_block`):

    x --U-Net--> m1 (stride of the first stage) --conv--> m2 --> ...     instance-specific, for the first stages of g_a:
                  `- conv, one for each block --> prompts                one prompt for d x d positions
    learned parameters, the same for every image and window              task-specific, for the stages of g_s

Nothing is fitted to an image and nothing is transmitted: a file names its adapter by a hash. Entropy model and gains
are those of the codec, so one adapter serves all rates of a codec that has them.

In training the U-Net has batch norms, as published; an adapter's file has its convolutions with these merged.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lora_comp.codecs.codec import replace_parts, title
from lora_comp.codecs.swin import Stage
from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods.adapter_files import choose, of_identity
from lora_comp.methods.alice import chosen
from lora_comp.methods.low_rank import identify
from lora_comp.methods.method import FitSettings, Spec, Unfitted, check_new
from lora_comp.ops.conv import conv3x3, products_of
from lora_comp.settings import setting

NAMES = ("transtic",)
LR = 1e-4  # published, with Adam
MOST = 256  # channels of the U-Net's first layers, and prompts in a window
WIDTH = 4  # the U-Net's first layers have a quarter of the channels of the first stage: published for TIC, 32 of 128


@dataclass(frozen=True)
class TransTICOptions:
    """Options of TransTIC; all but `adapter` are of training, as in the authors' configuration."""

    adapter: str = setting(
        "auto",
        "auto: the one trained for the task; a file that lora-comp train or import wrote; or the key of another task, "
        "such as cls-scenes",
        path=True,
    )
    tokens: int = setting(16, "in training: prompts of g_s in every window", low=1, high=MOST)
    downsample: int = setting(
        2, "in training: g_a has one prompt for so many positions, along each side", low=1, high=4
    )
    width: int | None = setting(
        None,
        "in training: channels of the U-Net's first layers; null: a quarter of the first stage's",
        low=1,
        high=MOST,
    )
    encoder: int = setting(2, "in training: how many stages of Swin blocks of g_a have prompts, from the finest", low=0)
    decoder: list[bool] | None = setting(
        None, "in training: which stages of Swin blocks of g_s have prompts, from the coarsest; null: all"
    )
    dropout: float = setting(0.0, "in training: probability of dropout of the prompts of g_s", low=0, high=0.9)


def stages_of(layers: nn.Module) -> dict[int, Any]:
    """The stages of Swin blocks of g_a or g_s by their index."""
    return {i: layer for i, layer in enumerate(layers.children()) if isinstance(layer, Stage)}


def channels(stage: Any) -> int:
    return stage.blocks[0].attn.proj.out_features


class Convolution(nn.Conv2d):
    """Of 3x3, with a ReLU if wanted: `ops.conv.conv3x3`."""

    def __init__(self, inputs: int, outputs: int, relu: bool):
        super().__init__(inputs, outputs, 3, padding=1)
        self.relu = relu
        self.kept: tuple = (), None  # cache for a frozen weight: its state, and its products

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        weight, bias, products = self.weight, self.bias, None
        assert bias is not None
        if weight.is_cpu and not (weight.requires_grad or weight.is_inference() or torch.compiler.is_compiling()):
            state = id(weight), weight.data_ptr(), weight._version
            if self.kept[0] != state:
                self.kept = state, products_of(weight)
            products = self.kept[1]
        return conv3x3(x, weight, bias, more, self.relu, products)


class Convolutions(nn.Sequential):
    """Of one map, or of the channels of two."""

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        first, *layers = self.children()
        x = first(x, more)
        for layer in layers:
            x = layer(x)
        return x


def _convolutions(inputs: int, outputs: int, count: int, norm: bool) -> Convolutions:
    layers: list[nn.Module] = []
    for i in range(count):
        convolution = Convolution(inputs if i == 0 else outputs, outputs, relu=not norm)
        layers += [convolution, *([nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [nn.Identity(), nn.Identity()])]
    return Convolutions(*layers)


class UNet(nn.Module):
    """The prompt generator: x (B, inputs, H, W), sides multiples of 4, to (B, outputs, H / 2, W / 2).

    width: channels at full resolution; twice and four times as many at half and a quarter of it.
    norm: with batch norms.
    """

    def __init__(self, inputs: int, width: int, outputs: int, norm: bool):
        super().__init__()
        self.down1 = _convolutions(inputs, width, 2, norm)
        self.down2 = _convolutions(width, 2 * width, 2, norm)
        self.down3 = _convolutions(2 * width, 4 * width, 2, norm)
        self.up2 = _convolutions(6 * width, 2 * width, 3, norm)
        self.up1 = _convolutions(3 * width, width, 3, norm)
        self.last = nn.Conv2d(width, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        three = self.down3(F.max_pool2d(two, 2))
        two = self.up2(two, _doubled(three))
        return self.last(self.up1(one, _doubled(two)))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class EncoderPrompts(nn.Module):
    """x (B, 3, H, W) to the prompts of each block of the first stages of g_a: maps (B, h, w, C) by stage.

    The U-Net works at half the stride of the first stage, of which TIC's is 2, on pixels that are moved into channels.

    Args:
        stages: by their index in g_a, which alternates layers of stride 2 and others.
    """

    def __init__(self, stages: Mapping[int, Any], width: int, downsample: int, norm: bool):
        super().__init__()
        first, *_ = stages
        dims = [channels(stage) for stage in stages.values()]
        self.fold = 2 ** ((first - 1) // 2)
        self.unet = UNet(3 * self.fold**2, width, dims[0], norm)
        self.between = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(dims))
        self.layers = nn.ModuleList()
        for dim, stage in zip(dims, stages.values(), strict=True):
            self.layers.append(nn.ModuleList(nn.Conv2d(dim, dim, 3, downsample, 1) for _ in stage.blocks))

    def forward(self, x: Tensor) -> Iterator[list[Tensor]]:
        m = self.unet(F.pixel_unshuffle(x, self.fold))
        for between, layers in zip([nn.Identity(), *self.between], self.layers, strict=True):
            m = between(m)
            yield [layer(m).permute(0, 2, 3, 1) for layer in layers.children()]


class DecoderPrompts(nn.Module):
    """The prompts of stages of g_s: learned, (blocks, tokens, C) of each."""

    def __init__(self, stages: Mapping[int, Any], tokens: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.tokens = nn.ParameterDict()
        for i, stage in stages.items():
            bound = (6 / (3 + channels(stage))) ** 0.5
            shape = len(stage.blocks), tokens, channels(stage)
            self.tokens[str(i)] = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self, y_hat: Tensor) -> Iterator[Tensor]:
        for tokens in self.tokens.values():
            yield F.dropout(tokens, self.dropout, self.training)


class Prompted(nn.Module):
    """The layers of g_a or g_s, under their own names and shared with the codec, with prompts for stages of them.

    prompts: called with the input; the prompts of each of the `indexes` in order.
    """

    def __init__(self, layers: nn.Module, indexes: Sequence[int], prompts: nn.Module, published_mask: bool = False):
        super().__init__()
        self.names = []
        for name, layer in layers.named_children():
            self.names.append(name)
            self.add_module(name, layer)
        self.prompts = prompts
        self.indexes, self.published_mask = indexes, published_mask

    def forward(self, x: Tensor) -> Tensor:
        prompts = dict(zip(self.indexes, self.prompts(x), strict=True))
        for i, layer in enumerate(map(self.get_submodule, self.names)):
            x = layer(x, prompts[i], self.published_mask) if i in prompts else layer(x)
        return x


@dataclass(frozen=True)
class Prompts:
    """An adapter.

    sides: for g_a, g_s or both the indexes of stages and the module that makes their prompts.
    published_mask: see `ops.window_attention.prompted_window_attention`.
    identity: of its tensors, without what the encoder alone needs to know, which is in the card.
    """

    sides: Mapping[str, tuple[Sequence[int], nn.Module]]
    published_mask: bool = False
    identity: bytes = b""

    def of(self, codec: Any, sides: Sequence[str] = ("g_a", "g_s")) -> Any:
        """A copy of the codec with prompts on these sides; its own modules are shared."""
        device = next(codec.parameters()).device
        made = {
            side: Prompted(codec.get_submodule(side), indexes, prompts.to(device), self.published_mask)
            for side, (indexes, prompts) in self.sides.items()
            if side in sides
        }
        return replace_parts(codec, **made)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for side, (_, prompts) in self.sides.items():
            yield from prompts.named_parameters(prefix=side)

    def tensors(self) -> dict[str, Tensor]:
        """As an adapter's file has them, with batch norms merged into the convolutions before them."""
        named = {name: value.detach() for name, value in self.named_parameters()}
        for side, (_, prompts) in self.sides.items():
            for name, module in prompts.named_modules(prefix=side):
                if isinstance(module, nn.BatchNorm2d):
                    stem, _, i = name.rpartition(".")
                    before = f"{stem}.{int(i) - 1}"
                    mean, variance = module.get_buffer("running_mean"), module.get_buffer("running_var")
                    own = named.pop(f"{name}.weight"), named.pop(f"{name}.bias")
                    convolution = named[f"{before}.weight"], named[f"{before}.bias"]
                    fused = fuse_conv_bn_weights(*convolution, mean, variance, module.eps, *own)
                    named[f"{before}.weight"], named[f"{before}.bias"] = (value.detach() for value in fused)
        return named


def build(
    codec: Any,
    encoder: int,
    decoder: Sequence[int],
    width: int,
    tokens: int,
    downsample: int,
    published_mask: bool = False,
    dropout: float = 0.0,
    norm: bool = False,
) -> Prompts:
    """New prompts, with seeded random parameters: of the first `encoder` stages of g_a, and of g_s those with the
    indexes `decoder`."""
    sides: dict[str, tuple[Sequence[int], nn.Module]] = {}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if encoder:
            first = dict(itertools.islice(stages_of(codec.g_a).items(), encoder))
            sides["g_a"] = list(first), EncoderPrompts(first, width, downsample, norm)
        if decoder:
            own = {i: stage for i, stage in stages_of(codec.g_s).items() if i in decoder}
            sides["g_s"] = list(own), DecoderPrompts(own, tokens, dropout)
    for _, prompts in sides.values():
        prompts.to(memory_format=torch.channels_last)
    return Prompts(sides, published_mask)


def new_prompts(codec: Any, options: TransTICOptions) -> Prompts:
    """Prompts to be trained. Raises LoraCompError if the options do not fit the codec, or choose no stage."""
    stages = stages_of(codec.g_a)
    if options.encoder > len(stages):
        raise LoraCompError(f"encoder must be at most {len(stages)}, the stages of {codec.name}, not {options.encoder}")
    decoder = [int(name.removeprefix("g_s.")) for name in chosen(codec, "g_s", "decoder", options.decoder)]
    if not (options.encoder or decoder):
        raise LoraCompError("method=transtic has nothing to adapt: choose a stage of encoder or decoder")
    first = next(iter(stages.values()))
    window = first.blocks[0].attn.window
    if window // 2 % options.downsample:
        raise LoraCompError(f"downsample must divide {window // 2}, half a window of {codec.name}")
    width = options.width or channels(first) // WIDTH
    return build(
        codec, options.encoder, decoder, width, options.tokens, options.downsample, dropout=options.dropout, norm=True
    )


def make(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], codec: Any) -> Prompts:
    """See `adapter_files.Make`."""
    if "downsample" not in card:
        raise LoraCompError(f"{path} is not an adapter that lora-comp train wrote")
    encoder = next(i for i in itertools.count() if f"g_a.layers.{i}.0.weight" not in tensors)
    decoder = [name.removeprefix("g_s.tokens.") for name in tensors if name.startswith("g_s.tokens.")]
    first, some = tensors.get("g_a.unet.down1.0.weight"), [tensors[f"g_s.tokens.{name}"] for name in decoder[:1]]
    prompts = build(
        codec,
        encoder,
        [int(name) for name in decoder if name.isdigit()],
        width=1 if first is None else min(max(1, len(first)), MOST),
        tokens=some[0].shape[1] if some and some[0].dim() == 3 else 1,
        downsample=card["downsample"],
        published_mask=card.get("published_mask", False),
    )
    own = dict(prompts.named_parameters())
    wrong = sorted(own.keys() ^ tensors.keys()) or [k for k in sorted(own) if own[k].shape != tensors[k].shape]
    if wrong:
        raise LoraCompError(f"{path} is not an adapter of {codec.name}: {wrong[0]} does not match its stages")
    for name, value in own.items():
        if not tensors[name].isfinite().all():
            raise LoraCompError(f"{path} holds no adapter that can be used: {name} is not finite; train it again")
        value.data.copy_(tensors[name])
    for _, module in prompts.sides.values():
        module.eval().requires_grad_(False)
    return replace(prompts, identity=identify(tensors))


class TransTIC:
    """A codec with prompts.

    The plain file is written where that has the lower objective: prompts that were trained on other images than this
    may do harm, which nothing else would show.
    """

    name, guarded, target = "transtic", True, None

    def __init__(self, prompts: Prompts):
        self.prompts, self.identity = prompts, prompts.identity
        self.settings: dict[str, Any] = {}

    def prepare(self, codec: Any, x: Tensor, settings: FitSettings = FitSettings()) -> Unfitted:  # noqa: B008
        """See `methods.Method.prepare`. The settings have no effect."""
        return Unfitted(self.prompts.of(codec), x)

    def restore(self, codec: Any, payload: bytes | None) -> Any:
        """See `methods.Method.restore`."""
        if payload is not None:
            raise BitstreamError("the file has a payload, but its method transtic transmits none")
        return self.prompts.of(codec, ["g_s"])


def load(codec: Any, task: str | None = None, **given: Any) -> TransTIC:
    """Load TransTIC with its adapter for a codec; `given` are fields of `TransTICOptions`, task as for
    `adapter_files.choose`.

    Raises LoraCompError without an adapter, for one of other weights, or for options of training.
    """
    options = TransTICOptions(**given)
    own = [f.name for f in fields(options) if f.name != "adapter" and getattr(options, f.name) != f.default]
    if own:
        raise LoraCompError(f"{' and '.join(own)} can be set in training alone: a trained adapter has its own")
    prompts = choose(codec, NAMES, options.adapter, task, make)
    if prompts is None:
        raise LoraCompError(
            f"method=transtic needs an adapter, and none ships for {title(codec.name, codec.rate_point)} and the task "
            f"{task or 'none'}: give a file that lora-comp train or import wrote as method.adapter=FILE"
        )
    return TransTIC(prompts)


def from_file(codec: Any, identity: bytes | None, path: str | Path | None = None) -> TransTIC:
    """The method of a file. Raises BitstreamError if its adapter is not available."""
    if identity is None:
        raise BitstreamError("the file is adapted but names no adapter")
    return TransTIC(of_identity(codec, identity, NAMES, path, make=make))


class Pretraining:
    """See `methods.method.Pretraining`: all prompts and what makes them, batch norms included."""

    lr = LR

    def __init__(self, codec: Any, options: TransTICOptions):
        check_new(options)
        self.prompts = new_prompts(codec, options)
        self.module = self.prompts.of(copy.deepcopy(codec)).requires_grad_(False).train()
        self.trained = dict(self.prompts.named_parameters())
        self.card = {"downsample": options.downsample, "dropout": options.dropout}

    def tensors(self) -> Mapping[str, Tensor]:
        return self.prompts.tensors()


SPEC = Spec(load, from_file, TransTICOptions(), Pretraining)
