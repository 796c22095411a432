from numpy import int32
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
def low_rank_update(
    y: int,
    x: int,
    u: int,
    s: int,
    v: int,
    y_stride: int,
    x_stride: int,
    n: int,
    in_features: int,
    out_features: int,
    rank: int,
    scale: float,
    stream: int | None = None,
) -> None: ...
