// Products of matrices as the window of a Swin block needs them: a weight or a small activation on the left, on the
// right the activations of all tokens, a row for each channel. In float32, or with numbers rounded to bfloat16 and sums
// in float32.
//
// This header and the others that a kernel is made of are compiled once for each instruction set: see kernel.hpp.
#pragma once

#include "../simd.hpp"
#include "tiles.hpp"

namespace lora_comp::swin {
namespace {

constexpr size_t kTokens = 64;  // of a window of 8x8

INLINE uint32_t* words(float* p) { return reinterpret_cast<uint32_t*>(p); }
INLINE const uint32_t* words(const float* p) { return reinterpret_cast<const uint32_t*>(p); }
INLINE uint32_t* words(uint16_t* p) { return reinterpret_cast<uint32_t*>(p); }
INLINE const uint32_t* words(const uint16_t* p) { return reinterpret_cast<const uint32_t*>(p); }
INLINE uint32_t* words(uint32_t* p) { return p; }
INLINE const uint32_t* words(const uint32_t* p) { return p; }

// Float32, by vectors.
struct Full {
  using Left = float;   // (rows, inner)
  using Right = float;  // (inner, columns)
  struct Session {};
  static constexpr size_t kPack = 1;   // rows of a Right in one of its words
  static constexpr size_t kInner = 2;  // the inner size is a multiple of this

  static INLINE Left number(float x) { return x; }

  // Of what is not above 0.
  static INLINE Vector exp(Vector x) { return exp_of(x); }
  // Phi(x), to 1.2e-7: 1/2 + x p(x^2), p fitted for x up to 5.2.
  static INLINE Vector normal_share(Vector x) {
    constexpr float kMost = 5.2f;
    x = x > kMost ? Vector{} + kMost : x;
    x = x > -kMost ? x : Vector{} - kMost;
    const Vector u = x * x * (2 / (kMost * kMost)) - 1.0f;
    const Vector square = u * u;
    Vector even = 2.0239360e-4f * square + 6.0074724e-4f, odd = -5.6229194e-4f * square - 9.7851106e-4f;
    even = even * square + 2.6624587e-3f, odd = odd * square - 5.0673732e-3f;
    even = even * square + 8.0100792e-3f, odd = odd * square - 1.2353357e-2f;
    even = even * square + 1.8133925e-2f, odd = odd * square - 2.4763450e-2f;
    even = even * square + 3.1962324e-2f, odd = odd * square - 3.9925396e-2f;
    even = even * square + 5.0026111e-2f, odd = odd * square - 6.7743808e-2f;
    even = even * square + 1.3594998e-1f;
    return (odd * u + even) * x + 0.5f;
  }

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
        Vector sum[kRows][kVectors] = {};
        for (size_t i = 0; start && i < kRows; ++i)
          for (size_t v = 0; v < kVectors; ++v) sum[i][v] = load(start + (r + i) * columns + column + v * kWidth);
        for (size_t k = 0; k < inner; ++k)
          for (size_t i = 0; i < kRows; ++i)
            for (size_t v = 0; v < kVectors; ++v)
              sum[i][v] += a[(r + i) * row + k] * at(b + k * columns + column + v * kWidth);
        for (size_t i = 0; i < kRows; ++i)
          for (size_t v = 0; v < kVectors; ++v) at(c + (r + i) * columns + column + v * kWidth) = sum[i][v];
      }
    }
  }
};

// Bfloat16 on AMX.
struct Half {
  using Left = uint16_t;
  using Right = uint32_t;
  using Session = Tiles;  // what a thread holds while it multiplies
  static constexpr size_t kPack = 2;
  static constexpr size_t kInner = 32;

  static INLINE Left number(float x) { return static_cast<uint16_t>((same_bits<uint32_t>(x) + 0x8000u) >> 16); }

  static INLINE Vector exp(Vector x) { return rough_exp2(x * 1.44269504f); }
  // Phi(x), to 5e-5 and its smallest values to 1 %: of -|x| it is 2 to the power of a polynomial.
  static INLINE Vector normal_share(Vector x) {
    const auto negative = x < 0.0f;
    Vector size = negative ? -x : x;
    size = size > 6.0f ? Vector{} + 6.0f : size;
    Vector p = size * -3.3977953e-4f + 6.2123225e-3f;
    p = p * size - 5.0143778e-2f;
    p = p * size - 4.6106901e-1f;
    p = p * size - 1.150659f;
    p = p * size - 1.0000153f;
    const Vector tail = rough_exp2(p);
    return negative ? tail : 1.0f - tail;
  }

  static INLINE void put(Right* to, size_t columns, size_t row, size_t column, Vector even, Vector odd) {
    const Words low = (same_bits<Words>(even) + 0x8000u) >> 16, high = (same_bits<Words>(odd) + 0x8000u) & 0xffff0000u;
    at(to + row / 2 * columns + column) = low | high;
  }
  static INLINE void put(Left* to, Vector x) { upper((same_bits<Words>(x) + 0x8000u), to); }
  static INLINE void take(const Right* from, size_t columns, size_t row, size_t column, Left* even, Left* odd) {
    const Words pairs = at(from + row / 2 * columns + column);
    upper(pairs << 16, even);
    upper(pairs, odd);
  }
  static INLINE void multiply(const Left* a, size_t row, const Right* b, size_t inner, float* c, size_t rows,
                              size_t columns, const float* start) {
    multiply_tiles(a, row, b, inner, c, rows, columns, start);
  }

 private:
  static INLINE void upper(Words x, Left* to) {
    *reinterpret_cast<Halves*>(to) = __builtin_convertvector(x >> 16, Halves);
  }
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

}  // namespace
}  // namespace lora_comp::swin
