#include "half.hpp"

#include <cstring>
#include <stdexcept>

#include "targets.hpp"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TARGET_TILES __attribute__((target("amx-tile,amx-bf16")))
#define TARGET_PAIRS __attribute__((target("avx512f,avx512bf16")))
#endif

namespace lora_comp::simd {

#ifdef TARGET_TILES

namespace {

bool ask_for_tiles() {
  unsigned a, b, c, d;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16) == 0 || (d & kTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2), since Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// 16 or 32 rows by 16 or 32 columns. The tiles' numbers are part of the instructions.
template <bool kRows, bool kColumns>
TARGET_TILES void multiply_block(const uint16_t* a, size_t row, const uint32_t* b, size_t inner, float* c,
                                 size_t columns, const float* start) {
  const size_t bytes = columns * sizeof(float), left_bytes = row * sizeof *a;
  if (start) {
    _tile_loadd(0, start, bytes);
    if constexpr (kColumns) _tile_loadd(1, start + 16, bytes);
    if constexpr (kRows) _tile_loadd(2, start + 16 * columns, bytes);
    if constexpr (kRows && kColumns) _tile_loadd(3, start + 16 * columns + 16, bytes);
  } else {
    _tile_zero(0);
    if constexpr (kColumns) _tile_zero(1);
    if constexpr (kRows) _tile_zero(2);
    if constexpr (kRows && kColumns) _tile_zero(3);
  }
  for (size_t k = 0; k < inner; k += 32) {
    const uint32_t* const right = b + k / 2 * columns;
    _tile_loadd(4, a + k, left_bytes);
    _tile_loadd(6, right, bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns) {
      _tile_loadd(7, right + 16, bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows) {
      _tile_loadd(5, a + 16 * row + k, left_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kRows && kColumns) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, bytes);
  if constexpr (kColumns) _tile_stored(1, c + 16, bytes);
  if constexpr (kRows) _tile_stored(2, c + 16 * columns, bytes);
  if constexpr (kRows && kColumns) _tile_stored(3, c + 16 * columns + 16, bytes);
}

TARGET_TILES void set_up(uint8_t* before) {
  alignas(64) uint8_t wanted[64] = {1};  // palette 1; then 8 x 16 bits: bytes of a row, 8 x 8 bits: rows
  for (size_t tile = 0; tile < 8; ++tile) {
    wanted[16 + 2 * tile] = 64;
    wanted[48 + tile] = 16;
  }
  _tile_storeconfig(before);
  asm volatile("" : : "r"(wanted) : "memory");  // GCC 12 thinks that only the first eight bytes are read
  _tile_loadconfig(wanted);
}

TARGET_TILES void set_back(const uint8_t* before) { _tile_loadconfig(before); }

template <bool kColumns>
void multiply_on_tiles(const uint16_t* a, size_t row, const uint32_t* b, size_t inner, float* c, size_t rows,
                       size_t columns, const float* start) {
  size_t r = 0;
  for (; r + 32 <= rows; r += 32)
    for (size_t at = 0; at < columns; at += kColumns ? 32 : 16)
      multiply_block<true, kColumns>(a + r * row, row, b + at, inner, c + r * columns + at, columns,
                                     start ? start + r * columns + at : nullptr);
  for (size_t at = 0; r < rows && at < columns; at += kColumns ? 32 : 16)
    multiply_block<false, kColumns>(a + r * row, row, b + at, inner, c + r * columns + at, columns,
                                    start ? start + r * columns + at : nullptr);
}

// kRows rows by kVectors vectors of columns: with 8 by 2 the sums hide the latency of the instruction, and take half of
// the registers.
template <size_t kVectors>
TARGET_PAIRS void multiply_pairs(const uint16_t* a, size_t row, const uint32_t* b, size_t inner, float* c, size_t rows,
                                 size_t columns, const float* start) {
  constexpr size_t kRows = 8, kWidth = 16;
  for (size_t at = 0; at < columns; at += kVectors * kWidth)  // of b, which stay in the first cache
    for (size_t r = 0; r < rows; r += kRows) {
      const size_t first = r * columns + at;
      __m512 sum[kRows][kVectors];
      for (size_t i = 0; i < kRows; ++i)
        for (size_t v = 0; v < kVectors; ++v)
          sum[i][v] = start ? _mm512_loadu_ps(start + first + i * columns + v * kWidth) : _mm512_setzero_ps();
      for (size_t k = 0; k < inner; k += 2) {
        __m512bh right[kVectors];
        for (size_t v = 0; v < kVectors; ++v)
          right[v] = (__m512bh)_mm512_loadu_si512(b + k / 2 * columns + at + v * kWidth);
        for (size_t i = 0; i < kRows; ++i) {
          int pair;
          std::memcpy(&pair, a + (r + i) * row + k, sizeof pair);
          const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
          for (size_t v = 0; v < kVectors; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], left, right[v]);
        }
      }
      for (size_t i = 0; i < kRows; ++i)
        for (size_t v = 0; v < kVectors; ++v) _mm512_storeu_ps(c + first + i * columns + v * kWidth, sum[i][v]);
    }
}

bool has_tiles() {
  static const bool found = ask_for_tiles();
  return found;
}

bool has_pairs() { return __builtin_cpu_supports("avx512bf16"); }

}  // namespace

bool half_available() { return best() >= Target::kAvx512 && (has_tiles() || has_pairs()); }

HalfSession::HalfSession() {
  if (has_tiles()) set_up(before_);
}
HalfSession::~HalfSession() {
  if (has_tiles()) set_back(before_);
}

void multiply_half(const uint16_t* a, size_t row, const uint32_t* b, size_t inner, float* c, size_t rows,
                   size_t columns, const float* start) {
  const bool wide = columns % 32 == 0;
  const auto multiply = has_tiles() ? (wide ? multiply_on_tiles<true> : multiply_on_tiles<false>)
                                    : (wide ? multiply_pairs<2> : multiply_pairs<1>);
  multiply(a, row, b, inner, c, rows, columns, start);
}

#else

bool half_available() { return false; }
HalfSession::HalfSession() : before_{} {}
HalfSession::~HalfSession() = default;
void multiply_half(const uint16_t*, size_t, const uint32_t*, size_t, float*, size_t, size_t, const float*) {
  throw std::logic_error("this machine does not multiply in bfloat16");
}

#endif

}  // namespace lora_comp::simd
