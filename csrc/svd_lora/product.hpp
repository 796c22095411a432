// c = start + a B + (a P) Q in one pass over a and c, and t^T a: the loops of a low-rank linear layer on the CPU.
#if defined(LORA_COMP_SVD_LORA_PRODUCT) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SVD_LORA_PRODUCT
#undef LORA_COMP_SVD_LORA_PRODUCT
#else
#define LORA_COMP_SVD_LORA_PRODUCT
#endif

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>

#include "../simd/product.hpp"
#include "svd_lora.hpp"

SIMD_BEGIN
namespace lora_comp::svd_lora::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;
using simd::SIMD_TARGET::load, simd::SIMD_TARGET::store;

constexpr size_t kGroup = 48;  // rows that share a panel while it lies in the first caches

// Tiles of kRows x kVectors vectors, a panel of columns wide, and sums of 4 x kSummed, that fit the registers of an
// instruction set.
constexpr size_t kRows = 6, kVectors = kWidth == 16 ? 4 : 2, kSummed = kVectors;
constexpr size_t kPanel = kVectors * kWidth;

// The first `count` lanes, zero beyond them.
INLINE Vector load(const float* p, size_t count) {
  if (count >= kWidth) return load(p);
  Vector v = {};
  std::memcpy(static_cast<void*>(&v), p, count * sizeof(float));
  return v;
}

INLINE void store(float* p, Vector v, size_t count) {
  if (count >= kWidth)
    store(p, v);
  else
    std::memcpy(p, &v, count * sizeof(float));
}

INLINE size_t left(size_t size, size_t done) { return size > done ? size - done : 0; }
INLINE size_t padded(size_t columns, size_t panel) { return (columns + panel - 1) / panel * panel; }

// c is (rows, columns), a (rows, inner), B (inner, columns), P (inner, rank), Q (rank, columns), start (columns,).
struct Product {
  size_t inner, columns, rank;  // the rank padded
  const float* weight;          // B in panels, each (inner, panel); null: c already holds start + a B
  const float* start;           // (padded columns,)
  const float* project;         // P^T, (rank, inner)
  const float* expand;          // Q in panels, each (rank, panel)
};

// Lane i gets the sum of v[i].
template <size_t kStep = 1>
INLINE Vector add_lanes(Vector (&v)[kWidth]) {
  using Lanes = std::make_index_sequence<kWidth>;
  if constexpr (kStep == kWidth) {
    return v[0];
  } else {
    for (size_t i = 0; i < kWidth; i += 2 * kStep)
      v[i] = simd::firsts<kStep>(v[i], v[i + kStep], Lanes()) + simd::seconds<kStep>(v[i], v[i + kStep], Lanes());
    return add_lanes<2 * kStep>(v);
  }
}

// t (rows, rank) = a P
inline void project(const Product& m, const float* a, size_t rows, float* t) {
  constexpr size_t kFours = kWidth / 4;  // rows at once, four ranks of each
  using Each = std::make_index_sequence<kWidth>;
  const size_t whole = m.inner / kWidth * kWidth, rest = m.inner - whole;
  const size_t count = rows < kFours ? 1 : kFours, step = count == 1 ? 0 : m.inner;
  for (size_t four = 0; four < m.rank; four += 4) {
    const float* const p = m.project + four * m.inner;
    for (size_t next = 0; next < rows; next += count) {
      const size_t row = std::min(next, rows - count);  // at the end some rows once more
      const float* const from = a + row * m.inner;
      Vector sum[kWidth] = {};
      for (size_t k = 0; k < whole; k += kWidth)
        unrolled(Each(),
                 [&](auto n) INLINED { sum[n] += load(from + n / 4 * step + k) * load(p + n % 4 * m.inner + k); });
      if (rest)
        unrolled(Each(), [&](auto n) INLINED {
          sum[n] += load(from + n / 4 * step + whole, rest) * load(p + n % 4 * m.inner + whole, rest);
        });
      const Vector result = add_lanes(sum);
      float values[kWidth];
      std::memcpy(values, &result, sizeof values);
      for (size_t i = 0; i < count; ++i) std::memcpy(t + (row + i) * m.rank + four, values + i * 4, 4 * sizeof(float));
    }
  }
}

// kTile rows of c, from `column` on, where a panel starts.
template <size_t kTile>
INLINE void tile(const Product& m, const float* a, const float* t, size_t column, float* c) {
  using Each = EachSum<kTile, kVectors>;
  Sums<kTile, kVectors> sum;
  if (m.weight) {
    read_sums<kTile, kVectors>(m.start + column, 0, sum);
    multiply_add<kTile, kVectors>(a, m.inner, 1, m.weight + column * m.inner, kPanel, m.inner, sum);
  } else {
    unrolled(Each(), [&](auto n) INLINED {
      const size_t lane = column + n % kVectors * kWidth;
      sum[n] = load(c + n / kVectors * m.columns + lane, left(m.columns, lane));
    });
  }
  multiply_add<kTile, kVectors>(t, m.rank, 1, m.expand + column * m.rank, kPanel, m.rank, sum);
  if (column + kPanel <= m.columns) return write_sums<kTile, kVectors>(sum, c + column, m.columns);
  unrolled(Each(), [&](auto n) INLINED {
    const size_t lane = column + n % kVectors * kWidth;
    store(c + n / kVectors * m.columns + lane, sum[n], left(m.columns, lane));
  });
}

// Rows that are read after those at work, asked of the memory a share at each tile: all at once they would hold up the
// tile's own.
struct Ahead {
  const float* next;  // null: none
  size_t share;

  Ahead(const float* next, size_t size, size_t tiles) : next(next), share(tiles ? size / tiles + 1 : 0) {}

  INLINE void ask() {
    for (size_t i = 0; next && i < share; i += 16) __builtin_prefetch(next + i, 0, 2);
    if (next) next += share;
  }
};

// t = a P and, unless c is null, c. Known to be read next, or null: the rows of a that follow, and others as wide as c.
inline void apply(const Product& m, const float* a, size_t rows, float* t, float* c, const float* following,
                  const float* others) {
  project(m, a, rows, t);
  const size_t tiles = (m.columns + kPanel - 1) / kPanel * (rows / kRows);
  Ahead a_ahead(following, rows * m.inner, tiles), others_ahead(others, rows * m.columns, tiles);
  for (size_t column = 0; c && column < m.columns; column += kPanel) {
    size_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
      a_ahead.ask();
      others_ahead.ask();
      tile<kRows>(m, a + row * m.inner, t + row * m.rank, column, c + row * m.columns);
    }
    if (row < rows && rows >= kRows && m.weight) {  // what is left, with some of the rows before it once more
      row = rows - kRows;
      tile<kRows>(m, a + row * m.inner, t + row * m.rank, column, c + row * m.columns);
      continue;
    }
    for (; row < rows; ++row) tile<1>(m, a + row * m.inner, t + row * m.rank, column, c + row * m.columns);
  }
}

// kCount vectors of columns, or, where that is 1, what is left of one.
template <size_t kCount>
inline void add_columns(const float* a, const float* t, size_t rows, size_t width, size_t rank, size_t column,
                        float* sums) {
  const size_t count = kCount == 1 ? width - column : kWidth;
  Vector sum[4][kCount] = {};
  for (size_t row = 0; row < rows; ++row)
    for (size_t v = 0; v < kCount; ++v) {
      const Vector values = load(a + row * width + column + v * kWidth, count);
      for (size_t k = 0; k < 4; ++k) sum[k][v] += t[row * rank + k] * values;
    }
  for (size_t k = 0; k < 4; ++k)
    for (size_t v = 0; v < kCount; ++v) {
      float* const to = sums + k * width + column + v * kWidth;
      store(to, load(to, count) + sum[k][v], count);
    }
}

// sums (rank, width) += t^T a, where a is (rows, width)
inline void add_products(const float* a, const float* t, size_t rows, size_t width, size_t rank, float* sums) {
  constexpr size_t kColumns = kSummed * kWidth;
  for (size_t four = 0; four < rank; four += 4) {
    size_t column = 0;
    for (; column + kColumns <= width; column += kColumns)
      add_columns<kSummed>(a, t + four, rows, width, rank, column, sums + four * width);
    for (; column < width; column += kWidth)
      add_columns<1>(a, t + four, rows, width, rank, column, sums + four * width);
  }
}

// Room for `size` floats on the border of a cache line, the same at each call of a thread: memory fresh from the
// system would be paid for page by page each time.
inline float* scratch(size_t size) {
  struct alignas(64) Line {
    float values[16];
  };
  thread_local std::unique_ptr<Line[]> lines;
  thread_local size_t count = 0;
  if (size / 16 + 1 > count) {
    count = size / 16 + 1;
    lines.reset(new Line[count]);
  }
  return lines[0].values;
}

// The factors of y (B = W^T, P = V, Q = U), or of the gradient of x (B = W, P = U, Q = V), laid out for the loops
// above. Q is already times scale * s. They lie in the thread's scratch: one at a time.
struct Packed {
  size_t inner, columns, rank, padded_columns;
  float *start, *expand, *project, *weight;  // of all adapters

  Packed(const LowRankLinear& a, bool gradient)
      : inner(gradient ? a.out : a.in),
        columns(gradient ? a.in : a.out),
        rank(low_rank_padded(a.rank)),
        padded_columns(padded(columns, kPanel)),
        start(scratch(padded_columns * (1 + a.batch * rank + inner) + a.batch * rank * inner)),
        expand(start + padded_columns),
        project(expand + a.batch * rank * padded_columns + inner * padded_columns),
        weight(a.weight ? project - inner * padded_columns : nullptr) {
    std::fill_n(start, padded_columns, 0.0f);
    if (a.bias && !gradient) std::copy_n(static_cast<const float*>(a.bias), columns, start);
  }

  Product of(size_t adapter) const {
    return {inner,
            columns,
            rank,
            weight,
            start,
            project + adapter * rank * inner,
            expand + adapter * rank * padded_columns};
  }
};

// The transpose of W (columns, inner), in panels.
inline void pack_transposed(const float* weight, size_t inner, size_t columns, float* to) {
  for (size_t column = 0; column < padded(columns, kPanel); column += kWidth)
    for (size_t k = 0; k < inner; k += kWidth) {
      Vector rows[kWidth] = {};
      for (size_t i = 0; i < kWidth; ++i)
        if (column + i < columns) rows[i] = load(weight + (column + i) * inner + k, inner - k);
      simd::transpose(rows);
      float* const panel = to + column / kPanel * inner * kPanel + column % kPanel;
      for (size_t i = 0; i < kWidth; ++i)
        if (k + i < inner) store(panel + (k + i) * kPanel, rows[i]);
    }
}

// W (inner, columns) in panels.
inline void pack_straight(const float* weight, size_t inner, size_t columns, float* to) {
  for (size_t column = 0; column < padded(columns, kPanel); column += kPanel)
    for (size_t k = 0; k < inner; ++k, to += kPanel)
      for (size_t lane = column; lane < column + kPanel; lane += kWidth)
        store(to + lane - column, load(weight + k * columns + lane, left(columns, lane)));
}

inline void pack(const LowRankLinear& a, bool gradient, const Packed& p) {
  const float* const weight = static_cast<const float*>(a.weight);
  if (weight && gradient) pack_straight(weight, p.inner, p.columns, p.weight);
  if (weight && !gradient) pack_transposed(weight, p.inner, p.columns, p.weight);
  float *project = p.project, *expand = p.expand;
  for (size_t adapter = 0; adapter < a.batch; ++adapter) {
    const float *const u = a.u + adapter * a.out * a.rank, *const v = a.v + adapter * a.in * a.rank;
    const float *const s = a.s + adapter * a.rank, *const first = gradient ? u : v, *const second = gradient ? v : u;
    for (size_t k = 0; k < p.rank; ++k)
      for (size_t i = 0; i < p.inner; ++i) *project++ = k < a.rank ? first[i * a.rank + k] : 0;
    for (size_t panel = 0; panel < p.columns; panel += kPanel)
      for (size_t k = 0; k < p.rank; ++k)
        for (size_t i = panel; i < panel + kPanel; ++i)
          *expand++ = i < p.columns && k < a.rank ? a.scale * s[k] * second[i * a.rank + k] : 0;
  }
}

}  // namespace
}  // namespace lora_comp::svd_lora::SIMD_TARGET
SIMD_END
#endif
