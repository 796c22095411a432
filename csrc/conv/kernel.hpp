// Pieces of 4x4 outputs, so many at a time that what belongs to them stays in the second cache.
#if defined(LORA_COMP_CONV_KERNEL) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_CONV_KERNEL
#undef LORA_COMP_CONV_KERNEL
#else
#define LORA_COMP_CONV_KERNEL
#endif

#include <algorithm>
#include <cstddef>

#include "../parallel.hpp"
#include "../simd/buffer.hpp"
#include "../simd/product.hpp"
#include "run.hpp"

SIMD_BEGIN
namespace lora_comp::conv::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;
using simd::Buffer;

constexpr size_t kSide = 4, kReach = 6, kProducts = kReach * kReach;
constexpr size_t kUnit = 16;            // pieces: a multiple of the rows of any product
constexpr size_t kNumbers = 96 * 1024;  // of a pass: 384 KB

// B^T x, of six vectors `step` apart.
INLINE void to_products(const Vector (&x)[kReach], Vector* to, size_t step) {
  const Vector a = x[4] - 4.0f * x[2], b = x[3] - 4.0f * x[1], c = x[4] - x[2], d = 2.0f * (x[3] - x[1]);
  to[0] = 4.0f * x[0] - 5.0f * x[2] + x[4];
  to[step] = a + b;
  to[2 * step] = a - b;
  to[3 * step] = c + d;
  to[4 * step] = c - d;
  to[5 * step] = 4.0f * x[1] - 5.0f * x[3] + x[5];
}

// A^T x.
INLINE void from_products(const Vector (&x)[kReach], Vector* to, size_t step) {
  const Vector a = x[1] + x[2], b = x[1] - x[2], c = x[3] + x[4], d = x[3] - x[4];
  to[0] = x[0] + a + c;
  to[step] = b + 2.0f * d;
  to[2 * step] = a + 4.0f * c;
  to[3 * step] = b + 8.0f * d + x[5];
}

struct Pieces {
  size_t rows, columns;  // of an image

  explicit Pieces(const Conv3x3& a) : rows((a.height + kSide - 1) / kSide), columns((a.width + kSide - 1) / kSide) {}
};

struct Place {
  size_t image, top, left;

  Place(const Pieces& pieces, size_t piece)
      : image(piece / (pieces.rows * pieces.columns)),
        top(piece / pieces.columns % pieces.rows * kSide),
        left(piece % pieces.columns * kSide) {}
};

// The inputs of a piece, `channels` of them at x: to (36, pieces, in).
inline void read_piece(const Conv3x3& a, const float* map, size_t channels, const Place& place, const float* zeros,
                       float* to, size_t step) {
  const float* from[kReach][kReach];
  for (size_t i = 0; i < kReach; ++i)
    for (size_t j = 0; j < kReach; ++j) {
      const size_t y = place.top + i - 1, x = place.left + j - 1;  // of which -1 is beyond any size
      from[i][j] = y < a.height && x < a.width ? map + ((place.image * a.height + y) * a.width + x) * channels : zeros;
    }
  for (size_t c = 0; c < channels; c += kWidth) {
    Vector half[kReach][kReach];
    for (size_t j = 0; j < kReach; ++j) {
      Vector column[kReach];
      for (size_t i = 0; i < kReach; ++i) column[i] = load(from[i][j] + c);
      to_products(column, &half[0][j], kReach);
    }
    for (size_t i = 0; i < kReach; ++i) {
      Vector row[kReach];
      to_products(half[i], row, 1);
      for (size_t j = 0; j < kReach; ++j) at(to + (i * kReach + j) * step + c) = row[j];
    }
  }
}

// The outputs of a piece: from (36, pieces, out).
inline void write_piece(const Job& job, const Place& place, const float* from, size_t step) {
  const Conv3x3& a = job.layer;
  const size_t height = std::min(kSide, a.height - place.top), width = std::min(kSide, a.width - place.left);
  float* const to = job.y + ((place.image * a.height + place.top) * a.width + place.left) * a.out;
  for (size_t c = 0; c < a.out; c += kWidth) {
    Vector half[kSide][kReach];
    for (size_t j = 0; j < kReach; ++j) {
      Vector column[kReach];
      for (size_t i = 0; i < kReach; ++i) column[i] = at(from + (i * kReach + j) * step + c);
      from_products(column, &half[0][j], kReach);
    }
    const Vector bias = load(a.bias + c), least = a.relu ? Vector{} : Vector{} - 3.4e38f;
    for (size_t i = 0; i < height; ++i) {
      Vector row[kSide];
      from_products(half[i], row, 1);
      for (size_t j = 0; j < width; ++j) {
        const Vector value = row[j] + bias;
        store(to + (i * a.width + j) * a.out + c, value > least ? value : least);
      }
    }
  }
}

// c (rows, out) = a b: a (rows, in), b (in, out).
template <size_t kRows, size_t kVectors>
void multiply(const float* a, const float* b, float* c, size_t rows, size_t in, size_t out) {
  for (size_t column = 0; column < out; column += kVectors * kWidth)
    for (size_t r = 0; r < rows; r += kRows) {
      Sums<kRows, kVectors> sum = {};
      multiply_add<kRows, kVectors>(a + r * in, in, 1, b + column, out, in, sum);
      write_sums<kRows, kVectors>(sum, c + r * out + column, out);
    }
}

inline void multiply(const float* a, const float* b, float* c, size_t rows, size_t in, size_t out) {
  constexpr size_t kSums = kWidth == 16 ? 16 : 8;  // in registers
  if (kWidth == 16 && out % (4 * kWidth) == 0) return multiply<kSums / 4, 4>(a, b, c, rows, in, out);
  if (out % (2 * kWidth) == 0) return multiply<kSums / 2, 2>(a, b, c, rows, in, out);
  multiply<kSums, 1>(a, b, c, rows, in, out);
}

// A distance between matrices, whose like rows then do not compete for one place in the first cache.
inline size_t apart(size_t size) { return (size + 1023) / 1024 * 1024 + 32; }

inline void run_all(const Job& job, unsigned threads) {
  const Conv3x3& a = job.layer;
  const Pieces pieces(a);
  const size_t in_channels = a.in + a.more;
  const size_t all = a.batch * pieces.rows * pieces.columns;
  const size_t most = std::max(kUnit, kNumbers / (kProducts * (in_channels + a.out)) / kUnit * kUnit);
  const size_t passes = (all + most - 1) / most, shares = std::min<size_t>(passes, std::max(1u, threads));
  parallel(shares, threads, [&](size_t share) {
    const size_t in_step = apart(most * in_channels), out_step = apart(most * a.out);
    Buffer<float> in(kProducts * in_step), out(kProducts * out_step), zeros(std::max(a.in, a.more));
    for (size_t pass = passes * share / shares; pass < passes * (share + 1) / shares; ++pass) {
      const size_t first = pass * most, count = std::min(most, all - first), rows = (count + kUnit - 1) / kUnit * kUnit;
      for (size_t i = 0; i < count; ++i) {
        const Place place(pieces, first + i);
        float* const to = in.get() + i * in_channels;
        read_piece(a, job.x, a.in, place, zeros.get(), to, in_step);
        read_piece(a, job.more, a.more, place, zeros.get(), to + a.in, in_step);
      }
      for (size_t k = 0; k < kProducts; ++k)
        multiply(in.get() + k * in_step, a.weight + k * in_channels * a.out, out.get() + k * out_step, rows,
                 in_channels, a.out);
      for (size_t i = 0; i < count; ++i) write_piece(job, Place(pieces, first + i), out.get() + i * a.out, out_step);
    }
  });
}

}  // namespace
}  // namespace lora_comp::conv::SIMD_TARGET
SIMD_END
#endif
