from numpy import float32, float64, int32
from numpy.typing import NDArray

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
def window_attention_forward(
    qkv: int, bias: int, out: int, sizes: tuple[int, ...], bfloat16: bool, threads: int, stream: int | None
) -> None: ...
def window_attention_backward(
    qkv: int,
    bias: int,
    grad_out: int,
    grad_qkv: int,
    grad_bias: int,
    sizes: tuple[int, ...],
    bfloat16: bool,
    threads: int,
    stream: int | None,
) -> None: ...
def swin_block_half() -> bool: ...
def swin_block_forward(
    x: int,
    y: int,
    kept: int,
    dense: list[int],
    low_rank: list[int],
    ranks: list[int],
    own: bool,
    sizes: tuple[int, ...],
    half: bool,
    threads: int,
) -> None: ...
def swin_block_backward(
    x: int,
    grad_y: int,
    grad_x: int,
    kept: int,
    dense: list[int],
    low_rank: list[int],
    ranks: list[int],
    own: bool,
    sizes: tuple[int, ...],
    dense_grads: list[int],
    low_rank_grads: list[int],
    half: bool,
    threads: int,
) -> None: ...
def gdn_forward(
    x: int, y: int, beta: int, gamma: int, sizes: tuple[int, int], inverse: bool, bfloat16: bool, threads: int
) -> None: ...
def gdn_backward(
    x: int,
    grad_y: int,
    grad_x: int,
    beta: int,
    gamma: int,
    grads: tuple[int, int],
    sizes: tuple[int, int],
    inverse: bool,
    bfloat16: bool,
    threads: int,
) -> None: ...
def low_rank_linear_forward(
    inputs: tuple[int, ...],
    y: int,
    t: int,
    sizes: tuple[int, ...],
    scale: float,
    bfloat16: bool,
    threads: int,
    stream: int | None,
) -> None: ...
def low_rank_linear_backward(
    inputs: tuple[int, ...],
    grad_y: int,
    t: int,
    space: int,
    grads: tuple[int, ...],
    sizes: tuple[int, ...],
    scale: float,
    bfloat16: bool,
    threads: int,
    stream: int | None,
) -> None: ...
def low_rank_linear_space(sizes: tuple[int, ...]) -> int: ...
