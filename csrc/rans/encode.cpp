#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "../parallel.hpp"
#include "kernels.hpp"
#include "stream.hpp"

namespace lora_comp::rans {
namespace {

constexpr size_t kSymbolsPerThread = 1u << 16;  // fewer are not worth a thread
constexpr size_t kSlack = 32;                   // vector kernels write up to so many bytes below what they keep

unsigned bit_length(uint32_t value) { return value == 0 ? 0 : 32 - static_cast<unsigned>(__builtin_clz(value)); }

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
std::string encode_block(const Kernel* kernel, const uint32_t* bins, size_t n, size_t lanes) {
  const size_t capacity = kSlack + 2 * n + 4 * lanes;
  const std::unique_ptr<uint8_t[]> buffer(new uint8_t[capacity]);  // not zeroed: most pages are never touched
  uint8_t* const end = buffer.get() + capacity;
  uint32_t states[1 << kMaxLog2Lanes];
  for (size_t lane = 0; lane < lanes; ++lane) states[lane] = kInitialState;
  Writer out{end, lanes, states};
  const auto code = [&](size_t from, size_t to) {
    for (size_t i = to; i-- > from;) {
      uint32_t x = states[i & (lanes - 1)];
      const uint32_t last = last_of(bins[i]);
      for (; x >> 16 > last; x >>= 8) *--out.p = static_cast<uint8_t>(x);
      states[i & (lanes - 1)] = x / (last + 1) * kTotal + x % (last + 1) + start_of(bins[i]);
    }
  };
  const size_t whole = n - n % lanes;
  code(whole, n);
  code(0, whole - (kernel && lanes >= kernel->min_lanes ? kernel->encode(bins, whole, out) : 0));
  for (size_t lane = lanes; lane-- > 0;)
    for (unsigned shift = 32; shift > 0; shift -= 8) *--out.p = static_cast<uint8_t>(states[lane] >> (shift - 8));
  return std::string(reinterpret_cast<const char*>(out.p), static_cast<size_t>(end - out.p));
}

}  // namespace

Found find_bins(const Kernel* kernel, const Flat& flat, const int32_t* symbols, const int32_t* indexes, size_t n,
                uint32_t* bins) {
  Found found;
  for (size_t i = kernel ? kernel->find_bins(flat, symbols, indexes, n, bins, found) : 0; i < n; ++i) {
    const Flat::Table& table = flat.tables[static_cast<size_t>(indexes[i])];
    uint32_t position = static_cast<uint32_t>(symbols[i]) - table.to_symbol;
    if (position - table.first >= table.escape - table.first) {
      put_escape(found.escapes, symbols[i], table);
      position = table.escape;
    }
    bins[i] = flat.bins[position];
    found.bits += 16 - bit_length(last_of(bins[i]));
  }
  return found;
}

void put_escape(std::string& escapes, int32_t symbol, const Flat::Table& table) {
  const auto offset = static_cast<int32_t>(table.to_symbol + table.first);
  put_varint(escapes, fold(static_cast<int64_t>(symbol) - offset, table.escape - table.first));
}

std::string encode_bins(size_t n, const std::function<Found(size_t, size_t, uint32_t*)>& fill, const Kernel* kernel,
                        unsigned threads) {
  const std::unique_ptr<uint32_t[]> bins(new uint32_t[n]);
  std::vector<Found> parts(std::min<size_t>(threads, n / kSymbolsPerThread + 1));
  parallel(parts.size(), threads, [&](size_t i) {
    const size_t begin = block_begin(n, i, parts.size()), end = block_begin(n, i + 1, parts.size());
    parts[i] = fill(begin, end, bins.get() + begin);
  });
  std::string escapes;
  uint64_t bits = 0;
  for (const Found& part : parts) {
    escapes += part.escapes;
    bits += part.bits;
  }

  const Layout layout(bits / 8);
  std::vector<std::string> blocks(layout.blocks);
  parallel(layout.blocks, threads, [&](size_t b) {
    const size_t begin = block_begin(n, b, layout.blocks), end = block_begin(n, b + 1, layout.blocks);
    blocks[b] = encode_block(kernel, bins.get() + begin, end - begin, size_t{1} << layout.log2_lanes);
  });
  std::string data;
  put_varint(data, (layout.blocks - 1) << 4 | (escapes.empty() ? 0u : 8u) | layout.log2_lanes);
  for (size_t b = 0; b + 1 < layout.blocks; ++b) put_varint(data, blocks[b].size());
  if (!escapes.empty()) put_varint(data, escapes.size());
  data += escapes;
  for (const std::string& block : blocks) data += block;
  return data;
}

std::string encode(const int32_t* symbols, const int32_t* indexes, size_t n, const Tables& tables,
                   const Engine& engine) {
  if (n == 0) return {};
  const Kernel* const kernel = choose(engine.kernel);
  tables.check(indexes, n);
  const Flat flat(tables, indexes, n, false);
  const auto fill = [&](size_t begin, size_t end, uint32_t* bins) {
    return find_bins(kernel, flat, symbols + begin, indexes + begin, end - begin, bins);
  };
  return encode_bins(n, fill, kernel, engine.threads);
}

}  // namespace lora_comp::rans
