// The inner loops of the coder, once in plain C++ and once for each instruction set that is worth it.
//
// A vector kernel does whole groups, one symbol in each lane, as many as it can; the plain loops do the rest. All of
// them give the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../simd/targets.hpp"
#include "rans.hpp"

namespace lora_comp::rans {

// The tables in use, laid out for gathers. All positions are below 2^28.
struct Flat {
  struct Table {
    uint32_t first;      // position of bin 0 in `bins`
    uint32_t escape;     // position of the last bin
    uint32_t to_symbol;  // symbol of a bin minus the bin's position, modulo 2^32
    uint32_t buckets;    // position of bucket 0 in `buckets` << 4 | log2 of the slots in a bucket
  };
  std::vector<Table> tables;
  std::vector<uint32_t> bins;     // start << 16 | frequency - 1
  std::vector<uint32_t> buckets;  // position of the first bin that a slot of the bucket can mean: decoders search on

  // Those of `tables` that indexes name; without indexes all.
  Flat(const Tables& tables, const int32_t* indexes, size_t n, bool for_decoder);
};

inline uint32_t start_of(uint32_t bin) { return bin >> 16; }
inline uint32_t last_of(uint32_t bin) { return bin & 0xffff; }

// Symbols to bins. `escapes` gets the values outside their tables; `bits` never exceeds the ideal code length.
struct Found {
  std::string escapes;
  uint64_t bits = 0;
};

// One block's coding, front to back or back to front: where the bytes are, and the lanes.
struct Writer {
  uint8_t* p;  // the block begins here, and grows downwards
  size_t lanes;
  uint32_t* states;
};

struct Reader {
  const uint8_t* p;
  const uint8_t* end;
  size_t lanes;
  uint32_t* states;
};

// Symbols that turned out to lie outside their tables, never more than `limit`.
struct Escaped {
  size_t limit;
  std::vector<size_t> at = {};

  void add(size_t symbol) {
    if (at.size() == limit) throw StreamError("coded symbols are damaged: values outside the tables are missing");
    at.push_back(symbol);
  }
};

void put_escape(std::string& escapes, int32_t symbol, const Flat::Table& table);

struct Kernel {
  const char* name;
  simd::Target target;
  size_t min_lanes;  // below, the plain loops do all
  // Each returns how many symbols it did: the first ones, but encode the last ones of n, a multiple of the lanes.
  size_t (*find_bins)(const Flat&, const int32_t* symbols, const int32_t* indexes, size_t n, uint32_t* bins, Found&);
  size_t (*encode)(const uint32_t* bins, size_t n, Writer&);
  size_t (*decode)(const Flat&, const int32_t* indexes, size_t begin, size_t end, Reader&, int32_t* symbols, Escaped&);
};

extern const Kernel avx2, avx512;

Found find_bins(const Kernel*, const Flat&, const int32_t* symbols, const int32_t* indexes, size_t n, uint32_t* bins);

// The stream of n > 0 symbols, whose bins from `begin` to `end` are what fill(begin, end, bins) writes.
std::string encode_bins(size_t n, const std::function<Found(size_t begin, size_t end, uint32_t* bins)>& fill,
                        const Kernel*, unsigned threads);

// null: the plain loops. Throws std::invalid_argument for a name that kernels() does not list.
const Kernel* choose(const std::string& name);

}  // namespace lora_comp::rans
