// Vectors of float32 by the compiler's own extension, as wide as the instruction set has them: wider ones would compile
// too, into code that takes every one of them through memory, fifty times slower.
#if defined(LORA_COMP_SIMD_VECTOR) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SIMD_VECTOR
#undef LORA_COMP_SIMD_VECTOR
#else
#define LORA_COMP_SIMD_VECTOR
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "shuffle.hpp"
#include "target.hpp"

SIMD_BEGIN
namespace lora_comp::simd::SIMD_TARGET {
namespace {

constexpr size_t kWidth = SIMD_LANES;
typedef float Vector __attribute__((vector_size(4 * SIMD_LANES), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * SIMD_LANES), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * SIMD_LANES), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * SIMD_LANES), may_alias));

INLINE Vector& at(float* p) { return *reinterpret_cast<Vector*>(p); }
INLINE const Vector& at(const float* p) { return *reinterpret_cast<const Vector*>(p); }
INLINE Words& at(uint32_t* p) { return *reinterpret_cast<Words*>(p); }
INLINE const Words& at(const uint32_t* p) { return *reinterpret_cast<const Words*>(p); }

template <class To, class From>
INLINE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Of an address that need not be a multiple of the vector's size.
INLINE Vector load(const float* p) {
  Vector x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
INLINE void store(float* p, Vector x) { std::memcpy(p, &x, sizeof x); }

// exp of what is not above 0, to two units in the last place (the polynomial of Cephes). Below -40 it is exp(-40),
// which a softmax in float32 does not see: products with denormal numbers take ten times as long.
INLINE Vector exp_of(Vector x) {
  x = x > -40.0f ? x : Vector{} - 40.0f;
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number, which its last bits then are
  const Vector n = shifted - 12582912.0f;
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const Vector square = r * r;
  Vector p = 1.9875691500e-4f * r + 1.3981999507e-3f;  // by pairs: a sum in one chain waits for itself
  p = p * square + (8.3334519073e-3f * r + 4.1665795894e-2f);
  p = p * square + (1.6666665459e-1f * r + 5.0000001201e-1f);
  p = p * square + (r + 1.0f);
  return same_bits<Vector>(same_bits<Words>(p) + (same_bits<Words>(shifted) << 23));
}

// 2^x of what is not above 0, to 8e-5: finer than bfloat16. Below -60 it is 2^-60.
INLINE Vector rough_exp2(Vector x) {
  x = x > -60.0f ? x : Vector{} - 60.0f;
  const Vector shifted = x + 12582912.0f;
  const Vector r = x - (shifted - 12582912.0f);
  Vector p = 5.517186e-2f * r + 2.4261118e-1f;
  p = p * r + 6.9326096e-1f;
  p = p * r + 9.999281e-1f;
  return same_bits<Vector>(same_bits<Words>(p) + (same_bits<Words>(shifted) << 23));
}

}  // namespace
}  // namespace lora_comp::simd::SIMD_TARGET
SIMD_END
#endif
