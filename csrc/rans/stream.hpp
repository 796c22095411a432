// What encoder and decoder must agree on: constants, varints, and the map between escaped values and unsigned ones.
#pragma once

#include <cstdint>
#include <string>

#include "rans.hpp"

namespace lora_comp::rans {

constexpr uint32_t kInitialState = 1u << 24;
constexpr uint32_t kTotal = 1u << 16;
constexpr unsigned kMaxLog2Lanes = 5;
constexpr uint64_t kBytesPerLane = 1u << 12;  // a lane costs up to 4 bytes, so 0.1 % at most
constexpr uint64_t kBytesPerBlock = 1u << 18;
constexpr size_t kMaxPosition = 1u << 28;  // of bins and buckets: a position and a shift share 32 bits

inline void put_varint(std::string& out, uint64_t value) {
  for (; value >= 128; value >>= 7) out.push_back(static_cast<char>(value | 128));
  out.push_back(static_cast<char>(value));
}

// The longest varint has 5 bytes: an escaped value needs 34 bits.
inline uint64_t get_varint(const uint8_t*& p, const uint8_t* end) {
  uint64_t value = 0;
  for (unsigned shift = 0; shift < 35; shift += 7) {
    if (p == end) throw StreamError("coded symbols end early");
    const uint8_t byte = *p++;
    value |= static_cast<uint64_t>(byte & 127) << shift;
    if (byte < 128) return value;
  }
  throw StreamError("coded symbols hold a number that is too long");
}

// value < 0 or value >= escape, where escape is the number of bins before the escape bin
inline uint64_t fold(int64_t value, int64_t escape) {
  return static_cast<uint64_t>(value < 0 ? -2 * value - 1 : 2 * (value - escape));
}

inline int64_t unfold(uint64_t folded, int64_t escape) {
  const int64_t half = static_cast<int64_t>(folded >> 1);
  return folded & 1 ? -half - 1 : half + escape;
}

inline size_t block_begin(size_t n, size_t block, size_t blocks) {
  return n / blocks * block + n % blocks * block / blocks;
}

}  // namespace lora_comp::rans
