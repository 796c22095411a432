"""A whole Swin block (Liu et al., "Swin Transformer", ICCV 2021, eq. 3), its linear layers with low-rank updates."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_comp import _C
from lora_comp.ops._call import KERNEL_TYPES, check, empty_unless
from lora_comp.ops.svd_lora import plain_svd_lora_linear, svd_lora_linear
from lora_comp.ops.window_attention import (
    plain_window_attention,
    prompted_window_attention,
    spacing_of,
    window_attention,
)
from lora_comp.shapes import Shapes

LAYERS = {"qkv": ("C", "3C"), "proj": ("C", "C"), "fc1": ("C", "hidden"), "fc2": ("hidden", "C")}  # in and out


def _shapes(own: tuple[bool, ...]) -> Shapes:
    """Of a block's tensors under dotted names; own: whether each layer has low-rank tensors for each image."""
    table = {"x": "B H W C", "position": "heads N N"}
    table |= {f"{norm}.{name}": "C" for norm in ("norm1", "norm2") for name in ("weight", "bias")}
    for (layer, (inputs, outputs)), each in zip(LAYERS.items(), own, strict=True):
        batch, rank = "B " if each else "", f"rank_of_{layer}"
        table |= {f"{layer}.weight": f"{outputs} {inputs}", f"{layer}.bias": outputs}
        table |= {
            f"{layer}.s": f"{batch}{rank}",
            f"{layer}.u": f"{batch}{outputs} {rank}",
            f"{layer}.v": f"{batch}{inputs} {rank}",
        }
    return Shapes(table)


SHAPES = {own: _shapes(own) for own in itertools.product((False, True), repeat=len(LAYERS))}
PROMPTS = {2: Shapes({"x": "B H W C", "prompts": "P C"}), 4: Shapes({"x": "B H W C", "prompts": "B h w C"})}
FUSED_WINDOW, FUSED_HEAD, FUSED_RANK = 8, 16, 256  # what the CPU kernel knows: its window, the largest head and rank
FUSED_PROMPTS = 64  # in a window
MOST_KEPT = 64 * 2**20  # bytes of one block
HALF = _C.swin_block_half()  # whether the processor multiplies in bfloat16


PLAIN = plain_window_attention, plain_svd_lora_linear
Linear: TypeAlias = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, float], Tensor]


class Layer(NamedTuple):
    """x W^T + ((x V) * s) U^T + b: see `svd_lora_linear`, its scale being part of s. Without u a plain layer.

    u (out, r), s (r,), v (in, r); or (B, out, r), (B, r), (B, in, r), a low-rank part for each image of a batch.
    """

    weight: Tensor
    bias: Tensor
    u: Tensor | None = None
    s: Tensor | None = None
    v: Tensor | None = None

    def __call__(self, x: Tensor, linear: Linear = svd_lora_linear) -> Tensor:
        if self.u is None or self.s is None or self.v is None:
            return F.linear(x, self.weight, self.bias)
        return linear(x, self.weight, self.bias, self.u, self.s, self.v, 1.0)


class Parts(NamedTuple):
    """What a block is made of. Norms are (weight, bias); position is the bias of the attention's logits.

    position: (heads, N, N) for each key and query of a window, N = window * window.
    """

    norm1: tuple[Tensor, Tensor]
    qkv: Layer
    position: Tensor
    proj: Layer
    norm2: tuple[Tensor, Tensor]
    fc1: Layer
    fc2: Layer

    @property
    def layers(self) -> tuple[Layer, Layer, Layer, Layer]:
        return self.qkv, self.proj, self.fc1, self.fc2

    def dense(self) -> list[Tensor]:
        """The block's own parameters, in the fused kernel's order."""
        weights = [tensor for layer in self.layers for tensor in (layer.weight, layer.bias)]
        return [*self.norm1, *self.norm2, self.position, *weights]

    def low_rank(self) -> list[Tensor]:
        """u, s, v of each layer; a tensor without elements where there is none."""
        none = self.position.new_empty(0)
        return [none if tensor is None else tensor for layer in self.layers for tensor in layer[2:]]


def plain_swin_block(x: Tensor, parts: Parts, window: int, shift: int, kernels: bool = True) -> Tensor:
    """The definition of `swin_block`, in torch. kernels: False for torch's operations alone, in attention and low-rank
    layers too."""
    attention, linear = (window_attention, svd_lora_linear) if kernels else PLAIN
    heads, channels = parts.position.shape[0], x.shape[3:]
    qkv = parts.qkv(F.layer_norm(x, channels, *parts.norm1), linear).unflatten(-1, (3, heads, -1))
    x = x + parts.proj(attention(qkv, parts.position, window, shift), linear)
    return x + parts.fc2(F.gelu(parts.fc1(F.layer_norm(x, channels, *parts.norm2), linear)), linear)


def plain_prompted_swin_block(
    x: Tensor, prompts: Tensor, parts: Parts, window: int, shift: int, published_mask: bool = False
) -> Tensor:
    """The definition of `prompted_swin_block`, in torch."""
    heads, channels = parts.position.shape[0], x.shape[3:]
    qkv = parts.qkv(F.layer_norm(x, channels, *parts.norm1)).unflatten(-1, (3, heads, -1))
    if prompts.dim() == 2 and parts.qkv.s is not None and parts.qkv.s.dim() == 2:  # low-rank parts of each image
        prompts = prompts.expand(len(x), *prompts.shape)
    keys_and_values = parts.qkv(prompts).unflatten(-1, (3, heads, -1))[..., 1:, :, :]
    attended = prompted_window_attention(qkv, keys_and_values, parts.position, window, shift, published_mask)
    x = x + parts.proj(attended)
    return x + parts.fc2(F.gelu(parts.fc1(F.layer_norm(x, channels, *parts.norm2))))


def swin_block(x: Tensor, parts: Parts, window: int, shift: int) -> Tensor:
    """x + attention(norm(x)) in windows shifted by `shift`, then x + MLP(norm(x)).

    On the CPU a block is one fused kernel, which computes a window of all its layers in the cache. It computes in
    float32; under `torch.autocast` in bfloat16 with sums, norms and skips in float32, where the processor has AMX or
    AVX-512 BF16. In float32 it keeps the products of qkv, proj and fc1 for the backward pass, of a map of up to
    `MOST_KEPT`; in bfloat16, where computing them again is as fast as reading them, and of larger maps, only x.
    Elsewhere it is `plain_swin_block`.

    Args:
        x: (B, H, W, C).
    Returns:
        (B, H, W, C); float32 from the kernel.
    Raises:
        ValueError: shapes or devices that do not fit each other, or a shift that is not in [0, window).
    """
    _check(x, parts, window, shift)
    if not _fits(x, parts, window):
        return plain_swin_block(x, parts, window, shift)
    return _run(x, None, parts, window, shift, False)


def prompted_swin_block(
    x: Tensor, prompts: Tensor, parts: Parts, window: int, shift: int, published_mask: bool = False
) -> Tensor:
    """`swin_block` with prompts, of which the layer qkv makes keys and values, without norm1: see
    `prompted_window_attention`, also for published_mask.

    The same fused kernel, with gradients of x and of prompts. It is `plain_prompted_swin_block` where `swin_block` is
    plain, with more than 64 prompts in a window, with low-rank updates, where parameters of the block want a gradient,
    and with the published mask of a map that is not made of whole windows.

    Args:
        prompts: (P, C), the same in every window, or a map (B, H / d, W / d, C), d a divisor of window and shift.
    Raises:
        ValueError: shapes or devices that do not fit each other, or a shift that is not in [0, window).
    """
    _check(x, parts, window, shift)
    check(PROMPTS[2 if prompts.dim() == 2 else 4], x, prompts)
    everywhere = prompts.dim() == 2
    count = len(prompts) if everywhere else (window // spacing_of(prompts, x.shape[1], x.shape[2], window, shift)) ** 2
    published_mask = published_mask and not everywhere
    fits = (
        _fits(x, parts, window)
        and prompts.dtype in KERNEL_TYPES
        and 0 < count <= FUSED_PROMPTS
        and (not published_mask or (count == 16 and x.shape[1] % window == 0 and x.shape[2] % window == 0))
        and not any([layer.s is not None for layer in parts.layers])
        and not (torch.is_grad_enabled() and any([t.requires_grad for t in parts.dense()]))
    )
    if not fits:
        return plain_prompted_swin_block(x, prompts, parts, window, shift, published_mask)
    return _run(x, prompts.float(), parts, window, shift, published_mask)


def _run(x: Tensor, prompts: Tensor | None, parts: Parts, window: int, shift: int, published_mask: bool) -> Tensor:
    half = HALF and torch.is_autocast_enabled("cpu")
    dense, low_rank = parts.dense(), parts.low_rank()
    keeps = (
        not half
        and 4 * math.prod(_kept_shape(x, dense)) <= MOST_KEPT
        and torch.is_grad_enabled()
        and any([t is not None and t.requires_grad for t in (x, prompts, *dense, *low_rank)])
    )
    return _fused(x.float(), prompts, dense, low_rank, window, shift, published_mask, half, keeps)[0]


def _check(x: Tensor, parts: Parts, window: int, shift: int) -> None:
    if not 0 <= shift < window:
        raise ValueError(f"shift must be in [0, {window}), the window, not {shift}")
    for name, layer in zip(LAYERS, parts.layers, strict=True):
        if len({tensor is None for tensor in layer[2:]}) > 1:
            raise ValueError(f"{name}.u, {name}.s and {name}.v must be given together")
        if layer.s is not None and layer.s.numel() == 0:
            raise ValueError(f"{name}.s must have a rank of at least 1, not shape {tuple(layer.s.shape)}")
    own = tuple([layer.s is not None and layer.s.dim() == 2 for layer in parts.layers])
    layers = [t for layer in parts.layers for t in (layer.weight, layer.bias, layer.s, layer.u, layer.v)]
    sizes = check(SHAPES[own], x, parts.position, *parts.norm1, *parts.norm2, *layers, N=window * window)
    if sizes["heads"] == 0 or sizes["C"] % sizes["heads"]:
        raise ValueError(f"position must have heads that divide {sizes['C']} channels, not {sizes['heads']}")


def _fits(x: Tensor, parts: Parts, window: int) -> bool:
    """Whether the kernel knows the block."""
    if x.device.type != "cpu" or x.dtype not in KERNEL_TYPES or x.numel() == 0:
        return False
    if any([t.dtype != torch.float32 for t in (*parts.dense(), *parts.low_rank())]):
        return False
    heads, channels, hidden = parts.position.shape[0], x.shape[3], parts.fc1.bias.shape[0]
    ranks = [layer.s.shape[-1] for layer in parts.layers if layer.s is not None]
    dimensions = {layer.s.dim() for layer in parts.layers if layer.s is not None}
    return (
        len(dimensions) < 2  # all layers share an adapter, or all have one for each image
        and window == FUSED_WINDOW
        and channels % 32 == 0
        and hidden % 32 == 0
        and heads % 2 == 0
        and channels // heads <= FUSED_HEAD
        and max(ranks, default=0) <= FUSED_RANK
    )


def _block(dense: Sequence[Tensor], low_rank: Sequence[Tensor]) -> "_C.SwinBlock":
    """The compiled part's view of a block or of its gradients: a tensor without elements is left out."""
    own = [t if t.numel() else None for t in dense]
    factors = [t if t.numel() else None for t in low_rank]
    layers = {
        name: _C.SwinLayer(
            weight=own[5 + 2 * i], bias=own[6 + 2 * i], u=factors[3 * i], s=factors[3 * i + 1], v=factors[3 * i + 2]
        )
        for i, name in enumerate(LAYERS)
    }
    return _C.SwinBlock(
        norm1_weight=own[0], norm1_bias=own[1], norm2_weight=own[2], norm2_bias=own[3], position=own[4], **layers
    )


def _kept_shape(x: Tensor, dense: list[Tensor]) -> tuple[int, ...]:
    """Of qkv, with heads padded to 16, the sum after proj and the hidden layer of every window, tokens last."""
    b, height, width, channels = x.shape
    products = 3 * FUSED_HEAD * len(dense[4]) + channels + len(dense[10])
    return b, -(-height // FUSED_WINDOW), -(-width // FUSED_WINDOW), products, FUSED_WINDOW**2


@torch.library.custom_op("lora_comp::swin_block", mutates_args=(), device_types="cpu")
def _fused(
    x: Tensor,
    prompts: Tensor | None,
    dense: list[Tensor],
    low_rank: list[Tensor],
    window: int,
    shift: int,
    published_mask: bool,
    half: bool,
    keeps: bool,
) -> tuple[Tensor, Tensor]:
    """y, and what the backward pass is spared; without elements where nothing is kept."""
    x, dense, low_rank = x.contiguous(), [t.contiguous() for t in dense], [t.contiguous() for t in low_rank]
    y, kept = torch.empty_like(x), x.new_empty(_kept_shape(x, dense) if keeps else 0)
    _C.swin_block_forward(
        block=_block(dense, low_rank),
        x=x,
        kept=kept if keeps else None,
        window=window,
        shift=shift,
        half=half,
        prompts=None if prompts is None else prompts.contiguous(),
        published_mask=published_mask,
        y=y,
        threads=torch.get_num_threads(),
    )
    return y, kept


@_fused.register_fake
def _(x, prompts, dense, low_rank, window, shift, published_mask, half, keeps):
    return x.new_empty(x.shape), x.new_empty(_kept_shape(x, dense) if keeps else 0)


@torch.library.custom_op("lora_comp::swin_block_backward", mutates_args=(), device_types="cpu")
def _backward(
    x: Tensor,
    prompts: Tensor | None,
    grad: Tensor,
    kept: Tensor,
    dense: list[Tensor],
    low_rank: list[Tensor],
    window: int,
    shift: int,
    published_mask: bool,
    half: bool,
    wants_x: bool,
    wants_prompts: bool,
    wants_dense: bool,
    wanted: list[bool],
) -> list[Tensor]:
    """The gradients of x, prompts, dense and low_rank, without elements where not wanted: `wanted` is of each of
    low_rank."""
    x, dense, low_rank = x.contiguous(), [t.contiguous() for t in dense], [t.contiguous() for t in low_rank]
    grad = grad.contiguous()
    grad_x = empty_unless(wants_x, x)
    grad_prompts = empty_unless(wants_prompts, x if prompts is None else prompts).zero_()
    dense_grads = [empty_unless(wants_dense, t).zero_() for t in dense]
    grads = [empty_unless(wants, t).zero_() for t, wants in zip(low_rank, wanted, strict=True)]
    _C.swin_block_backward(
        block=_block(dense, low_rank),
        x=x,
        kept=kept if kept.numel() else None,
        window=window,
        shift=shift,
        half=half,
        prompts=None if prompts is None else prompts.contiguous(),
        published_mask=published_mask,
        grad_y=grad,
        grad_x=grad_x if wants_x else None,
        grad_prompts=grad_prompts if wants_prompts else None,
        grads=_block(dense_grads, grads),
        threads=torch.get_num_threads(),
    )
    for i, s in enumerate(low_rank[1::3]):  # the kernel leaves out the factor s of these two
        for k in (3 * i, 3 * i + 2):
            if wanted[k]:
                grads[k] *= s.unsqueeze(-2)
    return [grad_x, grad_prompts, *dense_grads, *grads]


@_backward.register_fake
def _(x, prompts, grad, kept, dense, low_rank, window, shift, published_mask, half, *wants):
    wants_x, wants_prompts, wants_dense, wanted = wants
    like = [x, x if prompts is None else prompts, *dense, *low_rank]
    wants = [wants_x, wants_prompts, *[wants_dense] * len(dense), *wanted]
    return [empty_unless(w, t) for t, w in zip(like, wants, strict=True)]


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, prompts, dense, low_rank, *ctx.settings, _ = inputs
    ctx.count = len(dense)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, prompts, output[1], *dense, *low_rank)


def _differentiate(ctx, grad: Tensor, _: Tensor) -> tuple:
    x, prompts, kept, *rest = ctx.saved_tensors
    dense, low_rank = rest[: ctx.count], rest[ctx.count :]
    wants_x, wants_prompts, own, wanted, *_ = ctx.needs_input_grad
    grads = _backward(x, prompts, grad, kept, dense, low_rank, *ctx.settings, wants_x, wants_prompts, any(own), wanted)
    wants = [wants_x, wants_prompts, *own, *wanted]
    grad_x, grad_prompts, *grads = [g if w else None for g, w in zip(grads, wants, strict=True)]
    return grad_x, grad_prompts, grads[: ctx.count], grads[ctx.count :], *[None] * 5


_fused.register_autograd(_differentiate, setup_context=_keep)
