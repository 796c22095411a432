"""Swin Transformer blocks.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021, as used by TIC
(Lu et al., "Transformer-based Image Compression", DCC 2022), on feature maps of any size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_comp import ops
from lora_comp.ops.swin_block import plain_prompted_swin_block, plain_swin_block, prompted_swin_block


def position_bias(table: Tensor, window: int) -> Tensor:
    """The bias of each key and query of a window, (heads, N, N), N = window^2, from a table ((2 window - 1)^2, heads).

    A row of the table is for an offset of the query from the key along each axis. As a matrix of keys and queries the
    table is block Toeplitz, so that both axes unfold into overlapping pieces. Unlike that of an index, the gradient is
    a sum in a fixed order, which a CUDA graph can record.
    """
    side = 2 * window - 1
    pieces = table.view(side, side, -1).unfold(0, window, 1).unfold(1, window, 1)  # query y and x, heads, key y and x
    return pieces.flip(3, 4).permute(2, 3, 4, 0, 1).reshape(-1, window**2, window**2)


class WindowAttention(nn.Module):
    """Multi-head self-attention in windows, cyclically shifted by `shift`, with a relative position bias.

    x (B, H, W, C) to (B, H, W, C).
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.kept: tuple = (), None  # cache for a frozen table: its state, and `position`

    def position(self) -> Tensor:
        """Relative position bias of each key and query in a window: (heads, N, N)."""
        table = self.relative_position_bias_table
        if table.requires_grad or table.is_inference() or torch.compiler.is_compiling():
            return position_bias(table, self.window)
        state = id(table), table.data_ptr(), table._version
        if self.kept[0] != state:
            self.kept = state, position_bias(table, self.window)
        return self.kept[1]


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)


def as_layer(module) -> ops.Layer:
    """The `ops.Layer` of an nn.Linear, or of the module with `as_layer` that a method replaced it with."""
    return ops.Layer(module.weight, module.bias) if isinstance(module, nn.Linear) else module.as_layer()


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): (B, H, W, C) to (B, H, W, C).

    prompts, published_mask: see `ops.swin_block.prompted_swin_block`.
    kernels: False for torch's operations alone, in whose last bits published code agrees.
    """

    kernels = True

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, prompts: Tensor | None = None, published_mask: bool = False) -> Tensor:
        attn, mlp = self.attn, self.mlp
        norms = ((norm.weight, norm.bias) for norm in (self.norm1, self.norm2))
        qkv, proj, fc1, fc2 = map(as_layer, (attn.qkv, attn.proj, mlp.fc1, mlp.fc2))
        parts = ops.Parts(next(norms), qkv, attn.position(), proj, next(norms), fc1, fc2)
        if prompts is not None:
            block = prompted_swin_block if self.kernels else plain_prompted_swin_block
            return block(x, prompts, parts, attn.window, attn.shift, published_mask)
        if not self.kernels:
            return plain_swin_block(x, parts, attn.window, attn.shift, kernels=False)
        return ops.swin_block(x, parts, attn.window, attn.shift)


class Stage(nn.Module):
    """`depth` Swin blocks, every second one shifted: x (B, C, H, W) to (B, C, H, W).

    prompts: those of each block, see `SwinBlock`.
    """

    def __init__(self, dim: int, depth: int, heads: int, window: int, shifts: bool = True, mlp_ratio: float = 4.0):
        super().__init__()
        self.blocks = nn.Sequential(
            *(SwinBlock(dim, heads, window, window // 2 if shifts and i % 2 else 0, mlp_ratio) for i in range(depth))
        )

    def forward(self, x: Tensor, prompts: Sequence[Tensor] | None = None, published_mask: bool = False) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for i, block in enumerate(self.blocks):
            x = block(x) if prompts is None else block(x, prompts[i], published_mask)
        return x.permute(0, 3, 1, 2)


class RSTB(Stage):
    """Residual Swin Transformer block: a `Stage` with a skip connection.

    `shifts` is False for a stage whose feature map of a 256x256 image is no larger than its window, as in the published
    models.
    """

    def __init__(self, dim: int, depth: int, heads: int, window: int, shifts: bool, mlp_ratio: float = 2.0):
        super().__init__(dim, depth, heads, window, shifts, mlp_ratio)

    def forward(self, x: Tensor, prompts: Sequence[Tensor] | None = None, published_mask: bool = False) -> Tensor:
        return x + super().forward(x, prompts, published_mask)


def init_weights(module: nn.Module) -> None:
    """Swin's initialisation: truncated normal of standard deviation 0.02 for linear layers and bias tables."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
