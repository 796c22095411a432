"""Reference implementation of lora_comp.rans in Python. csrc/rans must give the same bytes."""

from itertools import pairwise

LOW = 1 << 24  # a lane's state lies in [LOW, 256 * LOW), and starts and ends at LOW


def encode(symbols, indexes, cdfs, sizes, offsets):
    if not symbols:
        return b""
    bins, escapes, bits = [], b"", 0
    for symbol, t in zip(symbols, indexes, strict=True):
        value, escape = symbol - offsets[t], sizes[t] - 2
        if not 0 <= value < escape:
            escapes += varint(-2 * value - 1 if value < 0 else 2 * (value - escape))
            value = escape
        start, frequency = cdfs[t][value], cdfs[t][value + 1] - cdfs[t][value]
        bins.append((start, frequency))
        bits += 16 - (frequency - 1).bit_length()  # never above the ideal code length
    blocks = 1 + bits // 8 // 2**18
    lanes = max(k for k in range(6) if k == 0 or 2**k * 4096 <= bits // 8 // blocks)  # log2
    head = varint((blocks - 1) << 4 | bool(escapes) << 3 | lanes)
    edges = [len(bins) * b // blocks for b in range(blocks + 1)]
    coded = [encode_block(bins[a:b], 2**lanes) for a, b in pairwise(edges)]
    head += b"".join(varint(len(block)) for block in coded[:-1])
    return head + (varint(len(escapes)) + escapes if escapes else b"") + b"".join(coded)


def encode_block(bins, lanes):
    states, taken = [LOW] * lanes, bytearray()
    for i in reversed(range(len(bins))):
        start, frequency = bins[i]
        x = states[i % lanes]
        while x >= frequency << 16:
            taken.append(x & 255)
            x >>= 8
        states[i % lanes] = (x // frequency << 16) + x % frequency + start
    return b"".join(x.to_bytes(4, "little") for x in states) + taken[::-1]


def varint(value):
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def decode(data, indexes, cdfs, sizes, offsets):
    """Inverse of `encode`, without checks for damage."""
    if not indexes:
        return []
    data = iter(data)
    head = read_varint(data)
    blocks, lanes = (head >> 4) + 1, 2 ** (head & 7)
    for _ in range(blocks - 1):
        read_varint(data)  # the blocks' sizes serve threads
    escapes = iter([next(data) for _ in range(read_varint(data))] if head & 8 else [])
    edges = [len(indexes) * b // blocks for b in range(blocks + 1)]
    symbols = []
    for begin, end in pairwise(edges):
        states = [int.from_bytes([next(data) for _ in range(4)], "little") for _ in range(lanes)]
        for i, t in enumerate(indexes[begin:end]):
            high, slot = divmod(states[i % lanes], 1 << 16)
            value = max(j for j in range(sizes[t] - 1) if cdfs[t][j] <= slot)
            x = (cdfs[t][value + 1] - cdfs[t][value]) * high + slot - cdfs[t][value]
            while x < LOW:
                x = x << 8 | next(data)
            states[i % lanes] = x
            if value == sizes[t] - 2:
                folded = read_varint(escapes)
                value = -(folded // 2) - 1 if folded % 2 else folded // 2 + value
            symbols.append(value + offsets[t])
    return symbols


def read_varint(data):
    byte = next(data)
    return byte if byte < 128 else byte - 128 + 128 * read_varint(data)
