#include <limits>
#include <vector>

#include "stream.hpp"

namespace lora_comp::rans {
namespace {

// For every table in use, the first bin that a slot's high bits can mean; the search goes on from there.
class Lookup {
 public:
  Lookup(const Tables& tables, const int32_t* indexes, size_t n) : entries_(tables.count()) {
    std::vector<uint8_t> used(tables.count());
    for (size_t i = 0; i < n; ++i) used[static_cast<size_t>(indexes[i])] = 1;
    for (size_t t = 0; t < tables.count(); ++t)
      if (used[t]) add(tables, static_cast<int32_t>(t));
  }

  int32_t first_bin(int32_t table, uint32_t slot) const {
    const Entry& entry = entries_[static_cast<size_t>(table)];
    return bins_[entry.begin + (slot >> entry.shift)];
  }

 private:
  struct Entry {
    size_t begin = 0;
    unsigned shift = 0;
  };

  void add(const Tables& tables, int32_t table) {
    unsigned shift = 10;  // about two buckets a bin, so that the search rarely takes more than one step
    while (shift > 0 && (kTotal >> shift) < 2 * static_cast<uint32_t>(tables.escape(table) + 1)) --shift;
    entries_[static_cast<size_t>(table)] = {bins_.size(), shift};
    const int32_t* const cdf = tables.row(table);
    int32_t bin = 0;
    for (uint32_t slot = 0; slot < kTotal; slot += 1u << shift) {
      while (static_cast<uint32_t>(cdf[bin + 1]) <= slot) ++bin;
      bins_.push_back(static_cast<uint16_t>(bin));
    }
  }

  std::vector<Entry> entries_;
  std::vector<uint16_t> bins_;
};

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

// Escaped symbols get their place in `escaped`, which never grows beyond `limit`.
void decode_block(Span in, const int32_t* indexes, size_t begin, size_t end, const Tables& tables, const Lookup& lookup,
                  size_t lanes, int32_t* symbols, std::vector<size_t>& escaped, size_t limit) {
  uint32_t states[1 << kMaxLog2Lanes];
  const uint8_t* p = in.begin;
  for (size_t lane = 0; lane < lanes; ++lane, p += 4)
    states[lane] = p[0] | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 |
                   static_cast<uint32_t>(p[3]) << 24;
  for (size_t i = begin; i < end; ++i) {
    uint32_t& state = states[(i - begin) & (lanes - 1)];
    const int32_t table = indexes[i];
    const int32_t* const cdf = tables.row(table);
    const uint32_t slot = state % kTotal;
    int32_t bin = lookup.first_bin(table, slot);
    while (static_cast<uint32_t>(cdf[bin + 1]) <= slot) ++bin;
    const uint32_t start = static_cast<uint32_t>(cdf[bin]);
    uint32_t x = (static_cast<uint32_t>(cdf[bin + 1]) - start) * (state / kTotal) + slot - start;
    while (x < kInitialState) {
      if (p == in.end) throw StreamError("coded symbols end early");
      x = x << 8 | *p++;
    }
    state = x;
    symbols[i] = static_cast<int32_t>(bin + tables.offset(table));
    if (bin == tables.escape(table)) {
      if (escaped.size() == limit) throw StreamError("coded symbols are damaged: values outside the tables are missing");
      escaped.push_back(i);
    }
  }
  for (size_t lane = 0; lane < lanes; ++lane)
    if (states[lane] != kInitialState) throw StreamError("coded symbols are damaged: a lane ends in a wrong state");
  if (p != in.end) throw StreamError("coded symbols are followed by bytes that do not belong to them");
}

}  // namespace

void decode(const uint8_t* data, size_t size, const int32_t* indexes, size_t n, const Tables& tables,
            int32_t* symbols) {
  if (n == 0) {
    if (size != 0) throw StreamError("coded symbols are followed by bytes that do not belong to them");
    return;
  }
  tables.check(indexes, n);
  const Stream stream = parse(data, size, n);
  const Lookup lookup(tables, indexes, n);
  std::vector<size_t> escaped;
  const size_t blocks = stream.blocks.size();
  for (size_t b = 0; b < blocks; ++b)
    decode_block(stream.blocks[b], indexes, block_begin(n, b, blocks), block_begin(n, b + 1, blocks), tables, lookup,
                 size_t{1} << stream.log2_lanes, symbols, escaped, stream.escapes.size());

  Span rest = stream.escapes;
  for (const size_t i : escaped) {
    const int64_t value = unfold(get_varint(rest.begin, rest.end), tables.escape(indexes[i]));
    const int64_t symbol = value + tables.offset(indexes[i]);
    if (symbol < std::numeric_limits<int32_t>::min() || symbol > std::numeric_limits<int32_t>::max())
      throw StreamError("coded symbols hold a value beyond int32");
    symbols[i] = static_cast<int32_t>(symbol);
  }
  if (rest.size() != 0) throw StreamError("coded symbols are followed by bytes that do not belong to them");
}

}  // namespace lora_comp::rans
