// Interleaved range asymmetric numeral systems (Duda, arXiv:1311.2540, section 3.2) with tables of 16-bit
// probabilities.
//
// A lane is a state x in [2^24, 2^32), renormalised by bytes. Symbol i of a block belongs to lane i mod lanes, and a
// lane takes its bytes right after its symbol: a decoder may run all lanes of a group at once, and blocks in threads.
// (States in [2^16, 2^32), renormalised by 16 bits, cost 0.1 to 0.2 % of the size at 16-bit probabilities.)
//
// Stream, empty for no symbols:
//   varint   (blocks - 1) << 4 | escapes << 3 | log2(lanes)
//   varint   size in bytes of every block but the last
//   if escapes: varint size of the escapes in bytes; a varint for each value outside its table, in symbol order
//   blocks   the lanes' states, 4 bytes each, then the bytes they take; block b of B has symbols [n b / B, n (b+1) / B)
// Integers are little-endian, varints LEB128; the bytes that lanes take come most significant first. Every lane must
// end at 2^24 with no byte left, so that a cut or lengthened stream never passes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace lora_comp::rans {

struct StreamError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// CompressAI's tables. Row t of cdfs, which are `stride` apart, rises strictly from 0 to 65536 in sizes[t] entries; bin
// j stands for the symbol offsets[t] + j, and the last bin for every symbol outside the others.
class Tables {
 public:
  // Throws std::invalid_argument, naming the row, for a table that is none.
  Tables(const int32_t* cdfs, const int32_t* sizes, const int32_t* offsets, size_t count, size_t stride);

  size_t count() const { return count_; }
  const int32_t* row(size_t table) const { return cdfs_ + table * stride_; }
  uint32_t bins(size_t table) const { return static_cast<uint32_t>(sizes_[table] - 1); }
  int32_t offset(size_t table) const { return offsets_[table]; }
  // Throws std::invalid_argument if an index names no table.
  void check(const int32_t* indexes, size_t n) const;

 private:
  const int32_t* cdfs_;
  const int32_t* sizes_;
  const int32_t* offsets_;
  size_t count_, stride_;
};

// How to run, which never changes the bytes. kernel: one of kernels(), or "" for the fastest.
struct Engine {
  unsigned threads = 1;
  std::string kernel = {};
};

// The kernels that this machine runs, fastest first.
std::vector<std::string> kernels();

std::string encode(const int32_t* symbols, const int32_t* indexes, size_t n, const Tables& tables,
                   const Engine& engine = {});

// Writes n symbols. Throws StreamError for a stream that encode() cannot have made.
void decode(const uint8_t* data, size_t size, const int32_t* indexes, size_t n, const Tables& tables, int32_t* symbols,
            const Engine& engine = {});

}  // namespace lora_comp::rans
