"""Swin Transformer blocks on feature maps of any size.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021, as used by TIC
(Lu et al., "Transformer-based Image Compression", DCC 2022). A map whose sides are no multiples of the window is
padded inside the attention, and what was padded is masked, so that every size gives every token its own window only.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -100.0  # added to the logit of a forbidden pair: exp(-100) is 0 in float32, and no row becomes NaN
CHUNK = 2048  # windows attended to at once; bounds the memory that the masks of a large picture take


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


def position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens in a window: int64 (N, N), N = window * window."""
    axis = torch.arange(window)
    at = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)  # (2, N)
    offset = at[:, :, None] - at[:, None, :] + window - 1  # (2, N, N)
    return offset[0] * (2 * window - 1) + offset[1]


def regions(height: int, width: int, window: int, shift: int) -> Tensor:
    """Who may attend to whom: int32 (windows, N), tokens of a window with equal numbers see each other.

    After the cyclic shift the last window of a row holds two strips that are no neighbours in the picture, and the
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
    return partition(number[None, :, :, None], window)[0, :, :, 0]


class WindowAttention(nn.Module):
    """Multi-head self-attention in windows, cyclically shifted by `shift`, with a relative position bias.

    x (B, H, W, C) to (B, H, W, C).
    """

    index: Tensor

    def __init__(self, dim: int, heads: int, window: int, shift: int):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("index", position_index(window), persistent=False)
        self._cached: tuple[tuple, Tensor] | None = None

    def bias(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """What is added to the logits of the windows of a map: (1 or windows, heads, N, N). Kept while frozen."""
        table = self.relative_position_bias_table
        key = (height, width, dtype, table.device, table._version, table.data_ptr())
        if self._cached is not None and self._cached[0] == key:
            return self._cached[1]
        bias = table[self.index].permute(2, 0, 1)[None]  # (1, heads, N, N)
        if self.shift or height % self.window or width % self.window:
            number = regions(height, width, self.window, self.shift).to(table.device)
            apart = number[:, None, :, None] != number[:, None, None, :]  # (windows, 1, N, N)
            bias = bias + MASKED * apart.to(bias.dtype)
        bias = bias.to(dtype)
        if not bias.requires_grad and len(bias) <= CHUNK:
            self._cached = (key, bias)
        return bias

    def attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, windows, N, C) with bias (1 or windows, heads, N, N) to (B, windows, N, C)."""
        b, windows, n, c = x.shape
        qkv = self.qkv(x).view(b, windows, n, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        q, k, v = qkv.unbind(0)  # (B, windows, heads, N, C / heads)
        if b == 1 or len(bias) == 1:
            fold = (b * windows, self.heads, n, c // self.heads)
        else:  # the mask differs from window to window: fold windows into heads, and it broadcasts over B
            fold, bias = (b, windows * self.heads, n, c // self.heads), bias.reshape(1, -1, n, n)
        out = F.scaled_dot_product_attention(q.reshape(fold), k.reshape(fold), v.reshape(fold), attn_mask=bias)
        return self.proj(out.view(b, windows, self.heads, n, -1).transpose(2, 3).reshape(b, windows, n, c))

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        window, shift = self.window, self.shift
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        padded = x.shape[1:3]
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        x = partition(x, window)
        bias = self.bias(height, width, x.dtype)
        if x.shape[1] <= CHUNK:
            x = self.attend(x, bias)
        else:
            chunks = x.split(CHUNK, 1)
            biases = [bias] * len(chunks) if len(bias) == 1 else bias.split(CHUNK)
            x = torch.cat([self.attend(*pair) for pair in zip(chunks, biases, strict=True)], 1)
        x = merge(x, window, *padded)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): (B, H, W, C) to (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class RSTB(nn.Module):
    """Residual Swin Transformer block: `depth` Swin blocks, every second one shifted, and a skip over all of them.

    x (B, C, H, W) to (B, C, H, W). `shifts` is False where a stage's map at the design size of 256x256 is no larger
    than its window: such a stage never shifts, whatever the size of the picture.
    """

    def __init__(self, dim: int, depth: int, heads: int, window: int, shifts: bool, mlp_ratio: float = 2.0):
        super().__init__()
        self.blocks = nn.Sequential(*(
            SwinBlock(dim, heads, window, window // 2 if shifts and i % 2 else 0, mlp_ratio) for i in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def init_weights(module: nn.Module) -> None:
    """The initial values of Swin's linear layers and bias tables: a normal of deviation 0.02, cut at two."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
