// Vectors of sixteen float32 by the compiler's own extension. A function marked INLINE has no instruction set of its
// own: it is compiled anew into each caller that has one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define TARGET_AVX2 __attribute__((target("avx2,fma")))

namespace lora_comp {

typedef float Vector __attribute__((vector_size(64), may_alias));
typedef int32_t Integers __attribute__((vector_size(64), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), may_alias));
constexpr size_t kWidth = 16;

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

// Of an address that need not be a multiple of 64.
INLINE Vector load(const float* p) {
  Vector x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
INLINE void store(float* p, Vector x) { std::memcpy(p, &x, sizeof x); }

// exp of what is not above 0, to two units in the last place (the polynomial of Cephes); 0 below -60, where a softmax
// in float32 would not see it, because products with denormal numbers take ten times as long.
INLINE Vector exp_of(Vector x) {
  const auto seen = x > -60.0f;
  x = seen ? x : Vector{};
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number
  const Vector n = shifted - 12582912.0f;
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Vector power = same_bits<Vector>((__builtin_convertvector(n, Integers) + 127) << 23);
  return seen ? p * power : Vector{};
}

// 2^x of what is not above 0, to 8e-5: finer than bfloat16. Below -60 it is 2^-60.
INLINE Vector rough_exp2(Vector x) {
  x = x > -60.0f ? x : Vector{} - 60.0f;
  const Vector shifted = x + 12582912.0f;  // rounds to a whole number, which its last bits then are
  const Vector r = x - (shifted - 12582912.0f);
  Vector p = 5.517186e-2f * r + 2.4261118e-1f;
  p = p * r + 6.9326096e-1f;
  p = p * r + 9.999281e-1f;
  return same_bits<Vector>(same_bits<Words>(p) + (same_bits<Words>(shifted) << 23));
}

#ifdef __clang__
#define SHUFFLE(a, b, from)                                                                                          \
  __builtin_shufflevector(a, b, from(0), from(1), from(2), from(3), from(4), from(5), from(6), from(7), from(8),      \
                          from(9), from(10), from(11), from(12), from(13), from(14), from(15))
#else
#define SHUFFLE(a, b, from)                                                                                          \
  __builtin_shuffle(a, b,                                                                                            \
                    Integers{from(0), from(1), from(2), from(3), from(4), from(5), from(6), from(7), from(8), from(9), \
                             from(10), from(11), from(12), from(13), from(14), from(15)})
#endif

// One bit of the row's number changes places with the same bit of the lane's.
template <int kBit>
INLINE void exchange(Words (&rows)[kWidth]) {
#define EVEN(lane) ((lane) & kBit ? 16 + (lane) - kBit : (lane))
#define ODD(lane) ((lane) & kBit ? 16 + (lane) : (lane) + kBit)
  for (size_t i = 0; i < kWidth; ++i) {
    if (i & kBit) continue;
    const Words a = rows[i], b = rows[i + kBit];
    rows[i] = SHUFFLE(a, b, EVEN);
    rows[i + kBit] = SHUFFLE(a, b, ODD);
  }
#undef EVEN
#undef ODD
}

// Sixteen rows become sixteen columns. Shuffles of two registers are one instruction with AVX-512 alone.
template <bool kShuffles>
INLINE void transpose(Words (&rows)[kWidth]) {
  if constexpr (kShuffles) {
    exchange<1>(rows), exchange<2>(rows), exchange<4>(rows), exchange<8>(rows);
  } else {
    alignas(64) uint32_t from[kWidth][kWidth], to[kWidth][kWidth];
    std::memcpy(from, rows, sizeof from);
    for (size_t i = 0; i < kWidth; ++i)
      for (size_t j = 0; j < kWidth; ++j) to[j][i] = from[i][j];
    std::memcpy(rows, to, sizeof to);
  }
}

}  // namespace lora_comp
