#include <limits>
#include <vector>

#include "../parallel.hpp"
#include "kernels.hpp"
#include "stream.hpp"

namespace lora_comp::rans {
namespace {

struct Span {
  const uint8_t* begin;
  const uint8_t* end;
  size_t size() const { return static_cast<size_t>(end - begin); }
};

struct Stream {
  unsigned log2_lanes;
  Span escapes;
  std::vector<Span> blocks;
};

Stream parse(const uint8_t* data, size_t size, size_t n) {
  const uint8_t* p = data;
  const uint8_t* const end = data + size;
  const uint64_t head = get_varint(p, end);
  const uint64_t blocks = (head >> 4) + 1;
  Stream stream{static_cast<unsigned>(head & 7), {p, p}, {}};
  if (stream.log2_lanes > kMaxLog2Lanes || blocks > n || blocks > size)
    throw StreamError("coded symbols have a head that makes no sense");
  std::vector<uint64_t> sizes(blocks);
  for (size_t b = 0; b + 1 < blocks; ++b) sizes[b] = get_varint(p, end);
  const auto take = [&](uint64_t count) {
    if (count > static_cast<uint64_t>(end - p)) throw StreamError("coded symbols end early");
    p += count;
    return Span{p - count, p};
  };
  if (head & 8) stream.escapes = take(get_varint(p, end));
  for (size_t b = 0; b < blocks; ++b) {
    stream.blocks.push_back(take(b + 1 < blocks ? sizes[b] : static_cast<uint64_t>(end - p)));
    if (stream.blocks.back().size() < size_t{4} << stream.log2_lanes) throw StreamError("coded symbols end early");
  }
  return stream;
}

void decode_rest(const Flat& flat, const int32_t* indexes, size_t begin, size_t end, Reader& in, int32_t* symbols,
                 Escaped& escaped) {
  for (size_t i = begin, lane = 0; i < end; ++i, lane = (lane + 1) & (in.lanes - 1)) {
    const uint32_t state = in.states[lane];
    const Flat::Table& table = flat.tables[static_cast<size_t>(indexes[i])];
    const uint32_t slot = state % kTotal;
    uint32_t position = flat.buckets[(table.buckets >> 4) + (slot >> (table.buckets & 15))];
    while (slot - start_of(flat.bins[position]) > last_of(flat.bins[position])) ++position;
    const uint32_t bin = flat.bins[position];
    uint32_t x = (last_of(bin) + 1) * (state / kTotal) + slot - start_of(bin);
    while (x < kInitialState) {
      if (in.p == in.end) throw StreamError("coded symbols end early");
      x = x << 8 | *in.p++;
    }
    in.states[lane] = x;
    symbols[i] = static_cast<int32_t>(position + table.to_symbol);
    if (position == table.escape) escaped.add(i);
  }
}

void decode_block(const Kernel* kernel, const Flat& flat, Span block, const int32_t* indexes, size_t begin, size_t end,
                  size_t lanes, int32_t* symbols, Escaped& escaped) {
  uint32_t states[1 << kMaxLog2Lanes];
  Reader in{block.begin, block.end, lanes, states};
  for (size_t lane = 0; lane < lanes; ++lane, in.p += 4)
    states[lane] = in.p[0] | static_cast<uint32_t>(in.p[1]) << 8 | static_cast<uint32_t>(in.p[2]) << 16 |
                   static_cast<uint32_t>(in.p[3]) << 24;
  if (kernel && lanes >= kernel->min_lanes) begin += kernel->decode(flat, indexes, begin, end, in, symbols, escaped);
  decode_rest(flat, indexes, begin, end, in, symbols, escaped);
  for (size_t lane = 0; lane < lanes; ++lane)
    if (states[lane] != kInitialState) throw StreamError("coded symbols are damaged: a lane ends in a wrong state");
  if (in.p != in.end) throw StreamError("coded symbols are followed by bytes that do not belong to them");
}

void read_escapes(Span escapes, const Flat& flat, const int32_t* indexes, const std::vector<Escaped>& escaped,
                  int32_t* symbols) {
  for (const Escaped& block : escaped) {
    for (const size_t i : block.at) {
      const Flat::Table& table = flat.tables[static_cast<size_t>(indexes[i])];
      const int64_t value = unfold(get_varint(escapes.begin, escapes.end), table.escape - table.first);
      const int64_t symbol = value + static_cast<int32_t>(table.to_symbol + table.first);
      if (symbol < std::numeric_limits<int32_t>::min() || symbol > std::numeric_limits<int32_t>::max())
        throw StreamError("coded symbols hold a value beyond int32");
      symbols[i] = static_cast<int32_t>(symbol);
    }
  }
  if (escapes.size() != 0) throw StreamError("coded symbols are followed by bytes that do not belong to them");
}

}  // namespace

void decode(const uint8_t* data, size_t size, const int32_t* indexes, size_t n, const Tables& tables, int32_t* symbols,
            const Engine& engine) {
  if (n == 0) {
    if (size != 0) throw StreamError("coded symbols are followed by bytes that do not belong to them");
    return;
  }
  const Kernel* const kernel = choose(engine.kernel);
  tables.check(indexes, n);
  const Stream stream = parse(data, size, n);
  const Flat flat(tables, indexes, n, true);
  const size_t blocks = stream.blocks.size();
  std::vector<Escaped> escaped(blocks, Escaped{stream.escapes.size()});
  parallel(blocks, engine.threads, [&](size_t b) {
    decode_block(kernel, flat, stream.blocks[b], indexes, block_begin(n, b, blocks), block_begin(n, b + 1, blocks),
                 size_t{1} << stream.log2_lanes, symbols, escaped[b]);
  });
  read_escapes(stream.escapes, flat, indexes, escaped, symbols);
}

}  // namespace lora_comp::rans
