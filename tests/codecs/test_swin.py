"""Window attention on feature maps of any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_comp import ops
from lora_comp.codecs import swin


def attend(attention: swin.WindowAttention, x: torch.Tensor) -> torch.Tensor:
    qkv = attention.qkv(x).unflatten(-1, (3, attention.heads, -1))
    return attention.proj(ops.window_attention(qkv, attention.position(), attention.window, attention.shift))


def slow_attention(attention: swin.WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Reference, token by token: a token attends to the tokens of its window that lie in the map and on the same side
    of the seam of the cyclic shift."""
    _, height, width, dim = x.shape
    window, shift, heads = attention.window, attention.shift, attention.heads
    rows, columns = (-(-side // window) * window for side in (height, width))
    table, out = attention.relative_position_bias_table, torch.zeros_like(x)
    q, k, v = attention.qkv(x[0]).view(height, width, 3, heads, dim // heads).unbind(2)

    def place(at: int, size: int) -> tuple[int, int, int]:
        """Window, position in it, and side of the seam, of a row or column."""
        moved = (at - shift) % size
        return moved // window, moved % window, int(at < shift)

    for i in range(height):
        for j in range(width):
            (wi, pi, si), (wj, pj, sj) = place(i, rows), place(j, columns)
            logits, values = [], []
            for a in range(height):
                for b in range(width):
                    (wa, pa, sa), (wb, pb, sb) = place(a, rows), place(b, columns)
                    if (wa, wb, sa, sb) == (wi, wj, si, sj):
                        row = (pi - pa + window - 1) * (2 * window - 1) + pj - pb + window - 1
                        logits.append((q[i, j] * k[a, b]).sum(-1) * (dim // heads) ** -0.5 + table[row])
                        values.append(v[a, b])
            weights = torch.stack(logits).softmax(0)  # (tokens, heads)
            out[0, i, j] = attention.proj((weights[..., None] * torch.stack(values)).sum(0).flatten())
    return out


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), shift=st.sampled_from([0, 2]), seed=st.integers(0, 99))
def test_window_attention_matches_the_reference_at_any_size(height, width, shift, seed):
    torch.manual_seed(seed)
    attention = swin.WindowAttention(dim=6, heads=2, window=4, shift=shift).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(1, height, width, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(attend(attention, x), slow_attention(attention, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shift", [0, 4])
def test_images_of_a_batch_are_independent(shift):
    block = swin.SwinBlock(dim=32, heads=2, window=8, shift=shift, mlp_ratio=2)
    x = torch.randn(3, 20, 12, 32)
    with torch.no_grad():
        together, alone = block(x), torch.cat([block(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
