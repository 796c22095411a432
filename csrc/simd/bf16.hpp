// bfloat16, the upper half of a float32: rounded to the nearest, in the middle to even, and a NaN stays one.
#if defined(LORA_COMP_SIMD_BF16) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SIMD_BF16
#undef LORA_COMP_SIMD_BF16
#else
#define LORA_COMP_SIMD_BF16
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "target.hpp"
#include "vector.hpp"

SIMD_BEGIN
namespace lora_comp::simd::SIMD_TARGET {
namespace {

// The rounded number in the upper half of each word. The lower half is not zero.
INLINE Words round_bf16(Vector x) {
  const Words bits = same_bits<Words>(x), rounded = bits + (0x7fffu + (bits >> 16 & 1u));
  return x == x ? rounded : Words{} + 0x7fc00000u;
}

INLINE Halves upper_halves(Words x) { return __builtin_convertvector(x >> 16, Halves); }

INLINE Vector load(const uint16_t* p) {
  Halves x;
  std::memcpy(&x, p, sizeof x);
  return same_bits<Vector>(__builtin_convertvector(x, Words) << 16);
}
INLINE void store(uint16_t* p, Vector x) {
  const Halves rounded = upper_halves(round_bf16(x));
  std::memcpy(p, &rounded, sizeof rounded);
}

// The same of one number.
inline uint16_t to_bf16(float x) {
  const auto bits = same_bits<uint32_t>(x);
  return static_cast<uint16_t>(x == x ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : 0x7fc0u);
}

inline void widen(const uint16_t* from, size_t count, float* to) {
  size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = same_bits<float>(static_cast<uint32_t>(from[i]) << 16);
}

inline void narrow(const float* from, size_t count, uint16_t* to) {
  size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = to_bf16(from[i]);
}

}  // namespace
}  // namespace lora_comp::simd::SIMD_TARGET
SIMD_END
#endif
