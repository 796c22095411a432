"""Self-attention in the shifted windows of a feature map (Liu et al., "Swin Transformer", ICCV 2021, eq. 4)."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_comp import _C
from lora_comp.ops._call import KERNEL_TYPES, check, empty_unless, run
from lora_comp.shapes import Shapes

SHAPES = Shapes({"qkv": "B H W 3 heads dim", "bias": "heads N N"})
MASKED = -100.0  # added to the logit of a forbidden pair: exp(-100) is 0 in float32, and no row becomes NaN
SHAPES_WITH_PROMPTS = {  # the same in every window, those of each image, and a map
    4: Shapes({"qkv": "B H W 3 heads dim", "bias": "heads N N", "prompts": "P 2 heads dim"}),
    5: Shapes({"qkv": "B H W 3 heads dim", "bias": "heads N N", "prompts": "B P 2 heads dim"}),
    6: Shapes({"qkv": "B H W 3 heads dim", "bias": "heads N N", "prompts": "B h w 2 heads dim"}),
}
FUSED_WINDOWS, FUSED_DIM = (4, 8), 32  # what the kernels know


def partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B, windows, window * window, C); H and W are multiples of `window`."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(b, -1, window * window, c)


def merge(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`: (B, windows, window * window, C) to (B, height, width, C)."""
    b, _, _, c = x.shape
    x = x.view(b, height // window, width // window, window, window, c).transpose(2, 3)
    return x.reshape(b, height, width, c)


@lru_cache(maxsize=32)
def regions(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Who may attend to whom: int32 (windows, N), tokens of a window with equal numbers see each other.

    After the cyclic shift the last window of a row holds two strips that are no neighbours in the image, and the
    padding of a map that is no multiple of the window belongs to nobody.
    """

    def axis(size: int) -> Tensor:
        padded = -(-size // window) * window
        number = torch.zeros(padded, dtype=torch.int32)
        if shift:
            number[-window:-shift] = 1
            number[-shift:] = 2
        number[((torch.arange(padded) + shift) % padded) >= size] = 3
        return number

    number = axis(height)[:, None] * 4 + axis(width)[None, :]
    return partition(number[None, :, :, None], window)[0, :, :, 0].to(device)


def windows_of(x: Tensor, window: int, shift: int) -> tuple[Tensor, ...]:
    """x (B, H, W, K, heads, dim), padded and shifted cyclically: K tensors (B, windows, heads, N, dim)."""
    b, height, width, kinds, heads, dim = x.shape
    x = F.pad(x.flatten(3), (0, 0, 0, -width % window, 0, -height % window))
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    x = partition(x, window)
    return x.view(b, -1, window * window, kinds, heads, dim).permute(3, 0, 1, 4, 2, 5).unbind(0)


def map_of(x: Tensor, window: int, shift: int, height: int, width: int) -> Tensor:
    """The inverse of `windows_of`: (B, windows, heads, N, dim) to (B, height, width, heads * dim)."""
    padded = -(-height // window) * window, -(-width // window) * window
    x = merge(x.transpose(2, 3).flatten(3), window, *padded)
    if shift:
        x = x.roll((shift, shift), (1, 2))
    return x[:, :height, :width]


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # else a training could not use what was cached
def seams(height: int, width: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The windows in which not all tokens may see each other, int64 (W,), and which must not: bool (W, N, N)."""
    number = regions(height, width, window, shift, device)
    at = (number != number[:, :1]).any(1).nonzero()[:, 0]
    return at, number[at, :, None] != number[at, None, :]


def plain_window_attention(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """The definition of `window_attention`, in torch."""
    height, width = qkv.shape[1:3]
    q, k, v = windows_of(qkv, window, shift)
    logits = bias.to(q.dtype).transpose(1, 2)  # (heads, N, N): query, key
    if shift or height % window or width % window:
        number = regions(height, width, window, shift, q.device)
        apart = number[:, None, :, None] != number[:, None, None, :]  # (windows, 1, N, N)
        logits = logits + MASKED * apart.to(q.dtype)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=logits)
    return map_of(x, window, shift, height, width)


def spacing_of(prompts: Tensor, height: int, width: int, window: int, shift: int) -> int:
    """d, of a map of prompts (B, height / d, width / d, ...). Raises ValueError if there is none that fits."""
    h, w = prompts.shape[1:3]
    d = height // max(h, 1)
    if (d * h, d * w) != (height, width) or d == 0 or window % d or shift % d:
        raise ValueError(
            f"a map of prompts needs one for d x d tokens, d a divisor of window {window} and shift {shift}, not "
            f"{h, w} for {height, width}"
        )
    return d


def prompted_window_attention(
    qkv: Tensor, prompts: Tensor, bias: Tensor, window: int, shift: int, published_mask: bool = False
) -> Tensor:
    """`window_attention` with prompts: more keys and values in each window, without queries and without a bias.

    Chen et al., "Transferring Transformer-based Image Compression from Human Perception to Machine Perception", ICCV
    2023. A token sees the prompts of those tokens that it sees. Plain torch on all devices; on the CPU
    `swin_block.prompted_swin_block` takes its place in whole blocks.

    Args:
        prompts: keys and values. (P, 2, heads, dim) or, of each image, (B, P, 2, heads, dim): the same in every window,
            seen by all. (B, H / d, W / d, 2, heads, dim): a map with one for each d x d tokens, which is shifted with
            them; d divides window, shift, H and W.
        published_mask: who sees whom in shifted windows as in the published code, where prompts are the first of the
            keys, but the last of the mask. So key i is seen as token i should be, and the last 16 keys as every second
            token from the 16th on. For windows of 8 and d = 2.
    Raises:
        ValueError: shapes that do not fit each other.
    """
    check(SHAPES_WITH_PROMPTS.get(prompts.dim(), SHAPES_WITH_PROMPTS[6]), qkv, bias, prompts, N=window * window)
    if prompts.dim() == 4:
        prompts = prompts[None]
    height, width = qkv.shape[1:3]
    q, k, v = windows_of(qkv, window, shift)
    everywhere = prompts.dim() == 5
    d = 1 if everywhere else spacing_of(prompts, height, width, window, shift)
    if everywhere:
        more = prompts.permute(0, 2, 3, 1, 4)[:, None].expand(*k.shape[:2], -1, -1, -1, -1).unbind(2)
    else:
        more = windows_of(prompts, window // d, shift // d)
    k, v = (torch.cat(pair, 3) for pair in zip(more, (k, v), strict=True))
    logits = F.pad(bias.to(q.dtype).transpose(1, 2), (k.shape[3] - q.shape[3], 0))[None]  # (1, heads, N, P + N)
    x = _attend(q, k, v, logits)
    if shift or height % window or width % window:
        at, hidden = seams(height, width, window, shift, q.device)
        if everywhere:
            hidden = F.pad(hidden, (prompts.shape[1], 0))
        elif published_mask:
            hidden = torch.cat([hidden, hidden[..., 16:48:2]], 2)
        else:
            hidden = torch.cat([hidden.unflatten(2, (window, window))[..., ::d, ::d].flatten(2), hidden], 2)
        logits = logits + MASKED * hidden[:, None].to(q.dtype)
        x = x.index_copy(1, at, _attend(q[:, at], k[:, at], v[:, at], logits))
    return map_of(x, window, shift, height, width)


def _attend(q: Tensor, k: Tensor, v: Tensor, logits: Tensor) -> Tensor:
    """Attention in windows: q (B, W, heads, N, dim), k and v (B, W, heads, keys, dim), logits (1 or W, heads, N, keys).

    In four dimensions, since for these torch has a fused kernel, which is five times as fast on the CPU.
    """
    batch = q.shape[:2]
    if len(logits) > 1:
        logits = logits.expand(batch[0], *logits.shape).flatten(0, 1)
    q, k, v = (tensor.flatten(0, 1) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=logits).unflatten(0, batch)


def window_attention(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    """softmax(q k^T / sqrt(dim) + bias) v in each window of a map that was shifted by `shift`, cyclically.

    A token attends to those of its window that are its neighbours in the image too, never to what pads a map whose
    sides are no multiples of the window. In float32 and bfloat16 one fused kernel does it all, gradients included, in
    memory for one window: on the CPU in numbers of float32, on a GPU with tensor cores in bfloat16. Elsewhere it is
    `plain_window_attention`.

    Args:
        qkv: (B, H, W, 3, heads, dim).
        bias: (heads, N, N) for each key and query of a window, N = window * window.
    Returns:
        (B, H, W, heads * dim), of qkv's dtype.
    Raises:
        ValueError: shapes or devices that do not fit each other, or a shift that is not in [0, window).
    """
    if not 0 <= shift < window:
        raise ValueError(f"shift must be in [0, {window}), the window, not {shift}")
    check(SHAPES, qkv, bias, N=window * window)
    known = qkv.is_cpu or (qkv.is_cuda and _C.has_cuda)
    fused = (
        known
        and qkv.dtype in KERNEL_TYPES
        and qkv.numel() > 0
        and window in FUSED_WINDOWS
        and qkv.shape[5] <= FUSED_DIM
    )
    if not fused:
        return plain_window_attention(qkv, bias, window, shift)
    return _fused(qkv.float() if qkv.is_cpu else qkv, bias.float(), window, shift).flatten(3).to(qkv.dtype)


@torch.library.custom_op("lora_comp::window_attention", mutates_args=(), device_types=("cpu", "cuda"))
def _fused(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    qkv, bias = qkv.contiguous(), bias.contiguous()
    out = qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])
    run(_C.window_attention_forward, qkv, qkv=qkv, bias=bias, window=window, shift=shift, out=out)
    return out


@_fused.register_fake
def _(qkv: Tensor, bias: Tensor, window: int, shift: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])


@torch.library.custom_op("lora_comp::window_attention_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _backward(qkv: Tensor, bias: Tensor, grad: Tensor, window: int, shift: int, wants_bias: bool) -> list[Tensor]:
    qkv, bias, grad = qkv.contiguous(), bias.contiguous(), grad.contiguous()
    grad_qkv, grad_bias = empty_unless(True, qkv), empty_unless(wants_bias, bias).zero_()
    run(
        _C.window_attention_backward,
        qkv,
        qkv=qkv,
        bias=bias,
        window=window,
        shift=shift,
        grad_out=grad,
        grad_qkv=grad_qkv,
        grad_bias=grad_bias if wants_bias else None,
    )
    return [grad_qkv, grad_bias]


@_backward.register_fake
def _(qkv: Tensor, bias: Tensor, grad: Tensor, window: int, shift: int, wants_bias: bool) -> list[Tensor]:
    return [empty_unless(True, qkv), empty_unless(wants_bias, bias)]


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    qkv, bias, ctx.window, ctx.shift = inputs
    ctx.save_for_backward(qkv, bias)


def _differentiate(ctx, grad: Tensor) -> tuple:
    qkv, bias = ctx.saved_tensors
    grad_qkv, grad_bias = _backward(qkv, bias, grad, ctx.window, ctx.shift, ctx.needs_input_grad[1])
    return grad_qkv, grad_bias if ctx.needs_input_grad[1] else None, None, None


_fused.register_autograd(_differentiate, setup_context=_keep)
