from numpy import float32, float64, int32
from numpy.typing import NDArray
from torch import Tensor

has_cuda: bool

def rans_kernels() -> list[str]: ...
def rans_encode(
    symbols: NDArray[int32],
    indexes: NDArray[int32],
    cdfs: NDArray[int32],
    sizes: NDArray[int32],
    offsets: NDArray[int32],
    threads: int = 1,
    kernel: str = "",
) -> bytes: ...
def rans_decode(
    data: bytes,
    indexes: NDArray[int32],
    cdfs: NDArray[int32],
    sizes: NDArray[int32],
    offsets: NDArray[int32],
    symbols: NDArray[int32],
    threads: int = 1,
    kernel: str = "",
) -> None: ...
def encode_latents(
    y: NDArray[float32],
    means: NDArray[float64],
    scales: NDArray[float64],
    bounds: NDArray[float64],
    cdfs: NDArray[int32],
    sizes: NDArray[int32],
    offsets: NDArray[int32],
    margin: float,
    symbols: NDArray[int32],
    threads: int = 1,
) -> tuple[bytes, list[tuple[int, int]]]: ...
def decode_latents(
    data: bytes,
    means: NDArray[float64],
    scales: NDArray[float64],
    bounds: NDArray[float64],
    cdfs: NDArray[int32],
    sizes: NDArray[int32],
    offsets: NDArray[int32],
    hints: list[tuple[int, int]],
    symbols: NDArray[int32],
    y: NDArray[float32],
    threads: int = 1,
) -> None: ...
def conv3x3(
    *, x: Tensor, more: Tensor | None, weight: Tensor, bias: Tensor, relu: bool, y: Tensor, threads: int
) -> None: ...
def gdn_forward(*, x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool, y: Tensor, threads: int) -> None: ...
def gdn_backward(
    *,
    x: Tensor,
    beta: Tensor,
    gamma: Tensor,
    inverse: bool,
    grad_y: Tensor,
    grad_x: Tensor,
    grad_beta: Tensor | None,
    grad_gamma: Tensor | None,
    threads: int,
) -> None: ...
def window_attention_forward(
    *, qkv: Tensor, bias: Tensor, window: int, shift: int, out: Tensor, threads: int, stream: int | None
) -> None: ...
def window_attention_backward(
    *,
    qkv: Tensor,
    bias: Tensor,
    window: int,
    shift: int,
    grad_out: Tensor,
    grad_qkv: Tensor,
    grad_bias: Tensor | None,
    threads: int,
    stream: int | None,
) -> None: ...
def low_rank_linear_forward(
    *,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    u: Tensor,
    s: Tensor,
    v: Tensor,
    scale: float,
    y: Tensor,
    t: Tensor,
    threads: int,
    stream: int | None,
) -> None: ...
def low_rank_linear_backward(
    *,
    x: Tensor,
    weight: Tensor | None,
    u: Tensor,
    s: Tensor,
    v: Tensor,
    scale: float,
    grad_y: Tensor,
    t: Tensor,
    space: Tensor | None,
    grad_x: Tensor | None,
    grad_u: Tensor | None,
    grad_s: Tensor | None,
    grad_v: Tensor | None,
    threads: int,
    stream: int | None,
) -> None: ...
def low_rank_linear_space(batch: int, n: int, inputs: int, outputs: int, rank: int) -> int: ...
def swin_block_half() -> bool: ...

class SwinLayer:
    def __init__(
        self, *, weight: Tensor | None, bias: Tensor | None, u: Tensor | None, s: Tensor | None, v: Tensor | None
    ) -> None: ...

class SwinBlock:
    def __init__(
        self,
        *,
        norm1_weight: Tensor | None,
        norm1_bias: Tensor | None,
        norm2_weight: Tensor | None,
        norm2_bias: Tensor | None,
        position: Tensor | None,
        qkv: SwinLayer,
        proj: SwinLayer,
        fc1: SwinLayer,
        fc2: SwinLayer,
    ) -> None: ...

def swin_block_forward(
    *,
    block: SwinBlock,
    x: Tensor,
    kept: Tensor | None,
    window: int,
    shift: int,
    half: bool,
    prompts: Tensor | None,
    published_mask: bool,
    y: Tensor,
    threads: int,
) -> None: ...
def swin_block_backward(
    *,
    block: SwinBlock,
    x: Tensor,
    kept: Tensor | None,
    window: int,
    shift: int,
    half: bool,
    prompts: Tensor | None,
    published_mask: bool,
    grad_y: Tensor,
    grad_x: Tensor | None,
    grad_prompts: Tensor | None,
    grads: SwinBlock,
    threads: int,
) -> None: ...
