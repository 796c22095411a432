"""Lossless coding of integers by interleaved rANS (Duda, arXiv:1311.2540) under CompressAI's tables.

    symbols -> bin of the table that indexes names -> rANS -> bytes
                `-> escape bin and the value itself, where the table does not reach

A table is a row of cumulative frequencies (`_quantized_cdf`), its number of entries (`_cdf_length`) and the symbol of
its first bin (`_offset`). Coding is exact for every int32 symbol. The coded size is the tables' ideal code length plus
at most 0.1 % and 16 bytes, and one to five bytes for each symbol outside its table.

>>> import numpy as np
>>> cdfs, sizes, offsets = np.int32([[0, 30000, 60000, 65536]]), np.int32([4]), np.int32([-1])  # bins -1, 0, escape
>>> symbols = np.int32([-1, 0, 0, 1000])
>>> data = encode(symbols, np.zeros(4, np.int32), cdfs, sizes, offsets)
>>> decode(data, np.zeros(4, np.int32), cdfs, sizes, offsets)
array([  -1,    0,    0, 1000], dtype=int32)

The inner loops exist in plain C++, for AVX2 and for AVX-512; the fastest that this machine runs is taken. Neither
the kernel nor the number of threads changes a byte.

The stream holds no count and no tables: the decoder must be given the same indexes and tables. With others it raises
BitstreamError or returns other symbols.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

try:
    from lora_comp import _C
except ImportError as error:
    raise ImportError(f"lora_comp's compiled part is missing ({error}): run `pip install .` in the checkout") from None
from lora_comp.shapes import Shapes

KERNELS: tuple[str, ...] = tuple(_C.rans_kernels())  # those that this machine runs, fastest first
SHAPES = Shapes({"symbols": "...", "indexes": "...", "cdfs": "tables entries", "sizes": "tables", "offsets": "tables"})
_INT32 = np.iinfo(np.int32)
_Ints: TypeAlias = npt.NDArray[np.int32]


def encode(
    symbols: npt.ArrayLike,
    indexes: npt.ArrayLike,
    cdfs: npt.ArrayLike,
    sizes: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    threads: int = 1,
    kernel: str = "",
) -> bytes:
    """Code `symbols`, each under the table that `indexes` names. No symbols give no bytes.

    Args:
        symbols: integers of any shape, within int32.
        indexes: integers of the same shape, in [0, tables).
        cdfs: (tables, entries) integers; row t rises strictly from 0 to 65536 in its first sizes[t] entries.
        sizes: (tables,) entries in use of each row, at least 2. The last bin is the escape bin.
        offsets: (tables,) the symbol that the first bin of each table stands for.
        threads: how many at most; more than one serve blocks of 256 KiB of coded symbols.
        kernel: one of `KERNELS`, or "" for the fastest.

    Raises:
        ValueError: tables, shapes, dtypes or ranges are not as said, or the kernel does not run here.
    """
    symbols, indexes, cdfs, sizes, offsets = _int32s(symbols, indexes, cdfs, sizes, offsets)
    SHAPES.check(symbols, indexes, cdfs, sizes, offsets)
    return _C.rans_encode(symbols, indexes, cdfs, sizes, offsets, _threads(threads), kernel)


def decode(
    data: bytes,
    indexes: npt.ArrayLike,
    cdfs: npt.ArrayLike,
    sizes: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    threads: int = 1,
    kernel: str = "",
) -> npt.NDArray[np.int32]:
    """Return the symbols that `encode` was given, int32 in the shape of `indexes`.

    Args:
        data: what `encode` returned.
        indexes, cdfs, sizes, offsets: as `encode` was given them.
        threads, kernel: as for `encode`; they need not be the same.

    Raises:
        BitstreamError: `data` is cut, too long or damaged. Damage may also pass and give other symbols.
        ValueError: tables, shapes, dtypes or ranges are not as said.
    """
    indexes, cdfs, sizes, offsets = _int32s(indexes, cdfs, sizes, offsets)
    SHAPES.check(None, indexes, cdfs, sizes, offsets)
    symbols = np.empty(indexes.shape, np.int32)
    _C.rans_decode(data, indexes, cdfs, sizes, offsets, symbols, _threads(threads), kernel)
    return symbols


def _int32s(*arguments: npt.ArrayLike) -> list[_Ints]:
    """The last arguments of the table."""
    names = list(SHAPES.arguments)[-len(arguments) :]
    return [_int32(name, argument) for name, argument in zip(names, arguments, strict=True)]


def _threads(threads: int) -> int:
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return min(threads, 256)


def _int32(name: str, values: npt.ArrayLike) -> _Ints:
    array = np.asarray(values)
    if array.dtype == np.int32:
        return np.ascontiguousarray(array).reshape(array.shape)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, not {array.dtype}")
    if array.size and (array.min() < _INT32.min or array.max() > _INT32.max):
        raise ValueError(f"{name} must lie within int32; they go from {array.min()} to {array.max()}")
    return array.astype(np.int32, order="C")
