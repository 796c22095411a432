#include <memory>
#include <string>
#include <vector>

#include "stream.hpp"

namespace lora_comp::rans {
namespace {

struct Bin {
  uint16_t start;
  uint16_t last;  // frequency - 1: a certain bin has 65536
};

unsigned bit_length(uint32_t value) {
  return value == 0 ? 0 : 32 - static_cast<unsigned>(__builtin_clz(value));
}

// Lanes and blocks cost bytes, so their number follows from a lower bound of the coded size, in bytes.
struct Layout {
  size_t blocks = 1;
  unsigned log2_lanes = 0;

  explicit Layout(uint64_t bytes) {
    blocks += bytes / kBytesPerBlock;
    while (log2_lanes < kMaxLog2Lanes && (kBytesPerLane << (log2_lanes + 1)) <= bytes / blocks) ++log2_lanes;
  }
};

// Codes back to front, as rANS must, and returns the block in the order a decoder reads.
std::string encode_block(const Bin* bins, size_t n, size_t lanes) {
  const size_t capacity = 2 * n + 4 * lanes;
  const std::unique_ptr<uint8_t[]> buffer(new uint8_t[capacity]);  // not zeroed: most pages are never touched
  uint8_t* const end = buffer.get() + capacity;
  uint8_t* p = end;
  uint32_t states[1 << kMaxLog2Lanes];
  for (size_t lane = 0; lane < lanes; ++lane) states[lane] = kInitialState;
  for (size_t i = n; i-- > 0;) {
    uint32_t& state = states[i & (lanes - 1)];
    uint32_t x = state;
    const uint32_t frequency = bins[i].last + 1u;
    const uint64_t limit = static_cast<uint64_t>(frequency) << 16;
    while (x >= limit) {
      *--p = static_cast<uint8_t>(x);
      x >>= 8;
    }
    state = (x / frequency) * kTotal + x % frequency + bins[i].start;
  }
  for (size_t lane = lanes; lane-- > 0;)
    for (unsigned shift = 32; shift > 0; shift -= 8) *--p = static_cast<uint8_t>(states[lane] >> (shift - 8));
  return std::string(reinterpret_cast<const char*>(p), static_cast<size_t>(end - p));
}

}  // namespace

std::string encode(const int32_t* symbols, const int32_t* indexes, size_t n, const Tables& tables) {
  if (n == 0) return {};
  tables.check(indexes, n);
  std::vector<Bin> bins(n);
  std::string escapes;
  uint64_t bits = 0;  // never above the ideal code length
  for (size_t i = 0; i < n; ++i) {
    const int32_t* const cdf = tables.row(indexes[i]);
    const int64_t escape = tables.escape(indexes[i]);
    int64_t value = static_cast<int64_t>(symbols[i]) - tables.offset(indexes[i]);
    if (value < 0 || value >= escape) {
      put_varint(escapes, fold(value, escape));
      value = escape;
    }
    const uint32_t last = static_cast<uint32_t>(cdf[value + 1] - cdf[value] - 1);
    bins[i] = {static_cast<uint16_t>(cdf[value]), static_cast<uint16_t>(last)};
    bits += 16 - bit_length(last);
  }

  const Layout layout(bits / 8);
  std::string head, body;
  put_varint(head, (layout.blocks - 1) << 4 | (escapes.empty() ? 0u : 8u) | layout.log2_lanes);
  for (size_t b = 0; b < layout.blocks; ++b) {
    const size_t begin = block_begin(n, b, layout.blocks);
    const size_t count = block_begin(n, b + 1, layout.blocks) - begin;
    const std::string block = encode_block(bins.data() + begin, count, size_t{1} << layout.log2_lanes);
    if (b + 1 < layout.blocks) put_varint(head, block.size());
    body += block;
  }
  if (!escapes.empty()) put_varint(head, escapes.size());
  return head + escapes + body;
}

}  // namespace lora_comp::rans
