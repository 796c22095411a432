// Products of small matrices. A kernel is written for the numbers N of one of two types: Float32, by vectors, or
// Bfloat16 with sums of float32, by tiles. A matrix on the left has its numbers row by row, one on the right as a
// product of its type wants them.
#if defined(LORA_COMP_SIMD_PRODUCT) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SIMD_PRODUCT
#undef LORA_COMP_SIMD_PRODUCT
#else
#define LORA_COMP_SIMD_PRODUCT
#endif

#include <cstddef>
#include <cstdint>
#include <utility>

#include "bf16.hpp"
#include "half.hpp"
#include "target.hpp"
#include "vector.hpp"

SIMD_BEGIN
namespace lora_comp::simd::SIMD_TARGET {
namespace {

// f(0), ..., f(kCount - 1) with constants, for arrays that are to stay in registers.
template <size_t... kIndex, class F>
INLINE void unrolled(std::index_sequence<kIndex...>, const F& f) {
  (f(std::integral_constant<size_t, kIndex>()), ...);
}

// kRows rows of kVectors vectors, in registers.
template <size_t kRows, size_t kVectors>
using Sums = Vector[kRows * kVectors];

template <size_t kRows, size_t kVectors>
using EachSum = std::make_index_sequence<kRows * kVectors>;

template <size_t kRows, size_t kVectors>
INLINE void read_sums(const float* from, size_t row, Sums<kRows, kVectors>& sum) {
  unrolled(EachSum<kRows, kVectors>(),
           [&](auto n) INLINED { sum[n] = load(from + n / kVectors * row + n % kVectors * kWidth); });
}

template <size_t kRows, size_t kVectors>
INLINE void write_sums(const Sums<kRows, kVectors>& sum, float* to, size_t row) {
  unrolled(EachSum<kRows, kVectors>(),
           [&](auto n) INLINED { store(to + n / kVectors * row + n % kVectors * kWidth, sum[n]); });
}

// sum += a b: the small product that all kernels of float32 are made of. a's rows lie `row` apart and its columns
// `step`, b's rows `columns`.
template <size_t kRows, size_t kVectors>
INLINE void multiply_add(const float* a, size_t row, size_t step, const float* b, size_t columns, size_t inner,
                         Sums<kRows, kVectors>& sum) {
#pragma GCC unroll 2
  for (size_t k = 0; k < inner; ++k, a += step, b += columns)
    unrolled(EachSum<kRows, kVectors>(),
             [&](auto n) INLINED { sum[n] += a[n / kVectors * row] * load(b + n % kVectors * kWidth); });
}

INLINE uint32_t* words(float* p) { return reinterpret_cast<uint32_t*>(p); }
INLINE const uint32_t* words(const float* p) { return reinterpret_cast<const uint32_t*>(p); }
INLINE uint32_t* words(uint16_t* p) { return reinterpret_cast<uint32_t*>(p); }
INLINE const uint32_t* words(const uint16_t* p) { return reinterpret_cast<const uint32_t*>(p); }
INLINE uint32_t* words(uint32_t* p) { return p; }
INLINE const uint32_t* words(const uint32_t* p) { return p; }

// Float32, by vectors.
struct Float32 {
  using Left = float;   // (rows, inner)
  using Right = float;  // (inner, columns)
  struct Session {};
  static constexpr size_t kPack = 1;   // rows of a Right in one of its words
  static constexpr size_t kInner = 2;  // the inner size is a multiple of this

  static INLINE Left number(float x) { return x; }

  // A vector of columns of rows `row`, which is even, and `row` + 1 of a Right.
  static INLINE void put(Right* to, size_t columns, size_t row, size_t column, Vector even, Vector odd) {
    at(to + row * columns + column) = even;
    at(to + (row + 1) * columns + column) = odd;
  }
  static INLINE void put(Left* to, Vector x) { at(to) = x; }
  // The other way: the same of a Right as rows of a Left.
  static INLINE void take(const Right* from, size_t columns, size_t row, size_t column, Left* even, Left* odd) {
    at(even) = at(from + row * columns + column);
    at(odd) = at(from + (row + 1) * columns + column);
  }

  // c (rows, columns) = a b + start, rows a multiple of 4, columns of kWidth; a's rows lie `row` apart. start may be
  // null.
  static INLINE void multiply(const Left* a, size_t row, const Right* b, size_t inner, float* c, size_t rows,
                              size_t columns, const float* start) {
    constexpr size_t kMost = kWidth == 16 ? 4 : 2;  // vectors of four sums each: AVX-512 has 32 registers, others 16
    if (columns % (kMost * kWidth) == 0)
      multiply_columns<kMost>(a, row, b, inner, c, rows, columns, start);
    else if (columns % (2 * kWidth) == 0)
      multiply_columns<2>(a, row, b, inner, c, rows, columns, start);
    else
      multiply_columns<1>(a, row, b, inner, c, rows, columns, start);
  }

 private:
  template <size_t kVectors>
  static INLINE void multiply_columns(const Left* a, size_t row, const Right* b, size_t inner, float* c, size_t rows,
                                      size_t columns, const float* start) {
    constexpr size_t kRows = 4;
    for (size_t column = 0; column < columns; column += kVectors * kWidth) {  // of b, which stay in the first cache
      for (size_t r = 0; r < rows; r += kRows) {
        float* const to = c + r * columns + column;
        Sums<kRows, kVectors> sum = {};
        if (start) read_sums<kRows, kVectors>(start + r * columns + column, columns, sum);
        multiply_add<kRows, kVectors>(a + r * row, row, 1, b + column, columns, inner, sum);
        write_sums<kRows, kVectors>(sum, to, columns);
      }
    }
  }
};

// Bfloat16: see half.hpp.
struct Bfloat16 {
  using Left = uint16_t;
  using Right = uint32_t;
  using Session = HalfSession;  // what a thread holds while it multiplies
  static constexpr size_t kPack = 2;
  static constexpr size_t kInner = 32;

  static INLINE Left number(float x) { return to_bf16(x); }

  static INLINE void put(Right* to, size_t columns, size_t row, size_t column, Vector even, Vector odd) {
    const Words low = round_bf16(even) >> 16, high = round_bf16(odd) & 0xffff0000u;
    at(to + row / 2 * columns + column) = low | high;
  }
  static INLINE void put(Left* to, Vector x) { upper(round_bf16(x), to); }
  static INLINE void take(const Right* from, size_t columns, size_t row, size_t column, Left* even, Left* odd) {
    const Words pairs = at(from + row / 2 * columns + column);
    upper(pairs << 16, even);
    upper(pairs, odd);
  }
  static INLINE void multiply(const Left* a, size_t row, const Right* b, size_t inner, float* c, size_t rows,
                              size_t columns, const float* start) {
    multiply_half(a, row, b, inner, c, rows, columns, start);
  }

 private:
  static INLINE void upper(Words x, Left* to) { *reinterpret_cast<Halves*>(to) = upper_halves(x); }
};

// (rows, columns) words to (columns, rows), both multiples of kWidth, of one of the operands above: so a Right becomes
// a Left of its transpose, and a Left a Right.
template <class N>
void transpose_words(const uint32_t* from, size_t rows, size_t columns, uint32_t* to) {
  for (size_t r = 0; r < rows; r += kWidth)
    for (size_t c = 0; c < columns; c += kWidth) {
      Words block[kWidth];
      for (size_t i = 0; i < kWidth; ++i) block[i] = at(from + (r + i) * columns + c);
      transpose(block);
      for (size_t i = 0; i < kWidth; ++i) at(to + (c + i) * rows + r) = block[i];
    }
}

// The first rows of a Right as a Left.
template <class N>
void to_left(const typename N::Right* from, size_t rows, size_t columns, typename N::Left* to) {
  for (size_t r = 0; r < rows; r += 2)
    for (size_t c = 0; c < columns; c += kWidth)
      N::take(from, columns, r, c, to + r * columns + c, to + (r + 1) * columns + c);
}

}  // namespace
}  // namespace lora_comp::simd::SIMD_TARGET
SIMD_END
#endif
