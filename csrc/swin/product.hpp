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
INLINE uint32_t* words(uint16_t* p) { return reinterpret_cast<uint32_t*>(p); }
INLINE uint32_t* words(uint32_t* p) { return p; }

// Float32, by vectors. kShuffles: see `transpose`.
template <bool kShuffles_>
struct Full {
  using Left = float;   // (rows, inner)
  using Right = float;  // (inner, columns)
  struct Session {};
  static constexpr bool kShuffles = kShuffles_;
  static constexpr size_t kPack = 1;   // rows of a Right in one of its words
  static constexpr size_t kInner = 2;  // the inner size is a multiple of this

  static INLINE Left number(float x) { return x; }

  // Sixteen columns of rows `row`, which is even, and `row` + 1 of a Right.
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

  // c (rows, columns) = a b + start, rows a multiple of 4, columns 16, 32 or 64; a's rows lie `row` apart. start may
  // be null.
  static INLINE void multiply(const Left* a, size_t row, const Right* b, size_t inner, float* c, size_t rows,
                              size_t columns, const float* start) {
    if (columns == kWidth)
      multiply_columns<1>(a, row, b, inner, c, rows, start);
    else if (columns == 2 * kWidth)
      multiply_columns<2>(a, row, b, inner, c, rows, start);
    else
      multiply_columns<kTokens / kWidth>(a, row, b, inner, c, rows, start);
  }

 private:
  template <size_t kVectors>
  static INLINE void multiply_columns(const Left* a, size_t row, const Right* b, size_t inner, float* c, size_t rows,
                                      const float* start) {
    constexpr size_t kRows = 4, kTogether = kShuffles || kVectors == 1 ? kVectors : 2;  // AVX2 has 8 such registers
    constexpr size_t kColumns = kVectors * kWidth;
    for (size_t r = 0; r < rows; r += kRows) {
      for (size_t column = 0; column < kColumns; column += kTogether * kWidth) {
        Vector sum[kRows][kTogether] = {};
        for (size_t i = 0; start && i < kRows; ++i)
          for (size_t v = 0; v < kTogether; ++v) sum[i][v] = load(start + (r + i) * kColumns + column + v * kWidth);
        for (size_t k = 0; k < inner; ++k)
          for (size_t i = 0; i < kRows; ++i)
            for (size_t v = 0; v < kTogether; ++v)
              sum[i][v] += a[(r + i) * row + k] * at(b + k * kColumns + column + v * kWidth);
        for (size_t i = 0; i < kRows; ++i)
          for (size_t v = 0; v < kTogether; ++v) at(c + (r + i) * kColumns + column + v * kWidth) = sum[i][v];
      }
    }
  }
};

// Bfloat16 on AMX.
struct Half {
  using Left = uint16_t;
  using Right = uint32_t;
  using Session = Tiles;  // what a thread holds while it multiplies
  static constexpr bool kShuffles = true;
  static constexpr size_t kPack = 2;
  static constexpr size_t kInner = 32;

  static INLINE Left number(float x) { return static_cast<uint16_t>((same_bits<uint32_t>(x) + 0x8000u) >> 16); }

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
    typedef uint16_t Halves __attribute__((vector_size(32), may_alias));
    *reinterpret_cast<Halves*>(to) = __builtin_convertvector(x >> 16, Halves);
  }
};

// (rows, columns) words to (columns, rows), both multiples of 16, of one of the operands above: so a Right becomes a
// Left of its transpose, and a Left a Right.
template <class N>
void transpose_words(const uint32_t* from, size_t rows, size_t columns, uint32_t* to) {
  for (size_t r = 0; r < rows; r += kWidth)
    for (size_t c = 0; c < columns; c += kWidth) {
      Words block[kWidth];
      for (size_t i = 0; i < kWidth; ++i) block[i] = at(from + (r + i) * columns + c);
      transpose<N::kShuffles>(block);
      for (size_t i = 0; i < kWidth; ++i) at(to + (c + i) * rows + r) = block[i];
    }
}

}  // namespace
}  // namespace lora_comp::swin
