// c = start + a B + (a P) Q in one pass over a and c, and t^T a: the loops of a low-rank linear layer on the CPU.
//
// Plain C++ on vectors; INLINE compiles it anew for each instruction set that cpu.cpp names.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>

#include "../shuffle.hpp"
#include "svd_lora.hpp"

#define INLINED __attribute__((always_inline))  // of a lambda

namespace lora_comp {

constexpr size_t kGroup = 48;  // rows that share a panel while it lies in the first caches

// Tiles of kRows x kVectors vectors, a panel of columns wide, and sums of 4 x kSummed, that fit the registers of an
// instruction set.
struct Wide {
  typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
  static constexpr size_t kWidth = 16, kRows = 6, kVectors = 4, kSummed = 4;
  static constexpr size_t kPanel = kVectors * kWidth;
};
struct Middle {
  typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
  static constexpr size_t kWidth = 8, kRows = 6, kVectors = 2, kSummed = 2;
  static constexpr size_t kPanel = kVectors * kWidth;
};
struct Narrow {
  typedef float Vector __attribute__((vector_size(16), aligned(4), may_alias));
  static constexpr size_t kWidth = 4, kRows = 6, kVectors = 2, kSummed = 2;
  static constexpr size_t kPanel = kVectors * kWidth;
};

template <class Fit>
INLINE typename Fit::Vector& at(float* p) {
  return *reinterpret_cast<typename Fit::Vector*>(p);
}

template <class Fit>
INLINE const typename Fit::Vector& at(const float* p) {
  return *reinterpret_cast<const typename Fit::Vector*>(p);
}

// The first `count` lanes, zero beyond them.
template <class Fit>
INLINE typename Fit::Vector load(const float* p, size_t count) {
  if (count >= Fit::kWidth) return at<Fit>(p);
  typename Fit::Vector v = {};
  std::memcpy(static_cast<void*>(&v), p, count * sizeof(float));
  return v;
}

template <class Fit>
INLINE void store(typename Fit::Vector v, float* p, size_t count) {
  if (count >= Fit::kWidth)
    at<Fit>(p) = v;
  else
    std::memcpy(p, &v, count * sizeof(float));
}

INLINE size_t left(size_t size, size_t done) { return size > done ? size - done : 0; }
INLINE size_t padded(size_t columns, size_t panel) { return (columns + panel - 1) / panel * panel; }

// f(0), ..., f(kCount - 1) with constants, for arrays that are to stay in registers.
template <size_t... kIndex, class F>
INLINE void unrolled(std::index_sequence<kIndex...>, const F& f) {
  (f(std::integral_constant<size_t, kIndex>()), ...);
}

// c is (rows, columns), a (rows, inner), B (inner, columns), P (inner, rank), Q (rank, columns), start (columns,).
struct Product {
  size_t inner, columns, rank;  // the rank padded
  const float* weight;          // B in panels, each (inner, panel); null: c already holds start + a B
  const float* start;           // (padded columns,)
  const float* project;         // P^T, (rank, inner)
  const float* expand;          // Q in panels, each (rank, panel)
};

// Lane i gets the sum of v[i].
template <class Fit, size_t kStep = 1>
INLINE typename Fit::Vector add_lanes(typename Fit::Vector (&v)[Fit::kWidth]) {
  using Lanes = std::make_index_sequence<Fit::kWidth>;
  if constexpr (kStep == Fit::kWidth) {
    return v[0];
  } else {
    for (size_t i = 0; i < Fit::kWidth; i += 2 * kStep)
      v[i] = firsts<kStep>(v[i], v[i + kStep], Lanes()) + seconds<kStep>(v[i], v[i + kStep], Lanes());
    return add_lanes<Fit, 2 * kStep>(v);
  }
}

// t (rows, rank) = a P
template <class Fit>
INLINE void project(const Product& m, const float* a, size_t rows, float* t) {
  constexpr size_t kRows = Fit::kWidth / 4;
  using Each = std::make_index_sequence<kRows * 4>;
  const size_t whole = m.inner / Fit::kWidth * Fit::kWidth, rest = m.inner - whole;
  const size_t count = rows < kRows ? 1 : kRows, step = count == 1 ? 0 : m.inner;
  for (size_t four = 0; four < m.rank; four += 4) {
    const float* const p = m.project + four * m.inner;
    for (size_t next = 0; next < rows; next += count) {
      const size_t row = std::min(next, rows - count);  // at the end some rows once more
      const float* const from = a + row * m.inner;
      typename Fit::Vector sum[kRows * 4] = {};
      for (size_t k = 0; k < whole; k += Fit::kWidth)
        unrolled(Each(), [&](auto n) INLINED {
          sum[n] += at<Fit>(from + n / 4 * step + k) * at<Fit>(p + n % 4 * m.inner + k);
        });
      if (rest)
        unrolled(Each(), [&](auto n) INLINED {
          sum[n] += load<Fit>(from + n / 4 * step + whole, rest) * load<Fit>(p + n % 4 * m.inner + whole, rest);
        });
      const typename Fit::Vector result = add_lanes<Fit>(sum);
      float values[Fit::kWidth];
      std::memcpy(values, &result, sizeof values);
      for (size_t i = 0; i < count; ++i) std::memcpy(t + (row + i) * m.rank + four, values + i * 4, 4 * sizeof(float));
    }
  }
}

template <size_t kRows, class Fit>
using Tile = std::make_index_sequence<kRows * Fit::kVectors>;

template <size_t kRows, class Fit>
INLINE void multiply(const float* a, size_t inner, const float* b, typename Fit::Vector (&sum)[kRows * Fit::kVectors]) {
#pragma GCC unroll 2
  for (size_t k = 0; k < inner; ++k, ++a, b += Fit::kPanel)
    unrolled(Tile<kRows, Fit>(), [&](auto n) INLINED {
      sum[n] += a[n / Fit::kVectors * inner] * at<Fit>(b + n % Fit::kVectors * Fit::kWidth);
    });
}

// kRows rows of c, from `column` on, where a panel starts.
template <size_t kRows, class Fit>
INLINE void tile(const Product& m, const float* a, const float* t, size_t column, float* c) {
  constexpr size_t kVectors = Fit::kVectors, kWidth = Fit::kWidth;
  typename Fit::Vector sum[kRows * kVectors];
  if (m.weight) {
    unrolled(Tile<kRows, Fit>(), [&](auto n) INLINED { sum[n] = at<Fit>(m.start + column + n % kVectors * kWidth); });
    multiply<kRows, Fit>(a, m.inner, m.weight + column * m.inner, sum);
  } else {
    unrolled(Tile<kRows, Fit>(), [&](auto n) INLINED {
      const size_t lane = column + n % kVectors * kWidth;
      sum[n] = load<Fit>(c + n / kVectors * m.columns + lane, left(m.columns, lane));
    });
  }
  multiply<kRows, Fit>(t, m.rank, m.expand + column * m.rank, sum);
  const bool whole = column + Fit::kPanel <= m.columns;
  unrolled(Tile<kRows, Fit>(), [&](auto n) INLINED {
    const size_t lane = column + n % kVectors * kWidth;
    float* const to = c + n / kVectors * m.columns + lane;
    if (whole)
      at<Fit>(to) = sum[n];
    else
      store<Fit>(sum[n], to, left(m.columns, lane));
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
template <class Fit>
INLINE void apply(const Product& m, const float* a, size_t rows, float* t, float* c, const float* following,
                  const float* others) {
  project<Fit>(m, a, rows, t);
  const size_t tiles = (m.columns + Fit::kPanel - 1) / Fit::kPanel * (rows / Fit::kRows);
  Ahead a_ahead(following, rows * m.inner, tiles), others_ahead(others, rows * m.columns, tiles);
  for (size_t column = 0; c && column < m.columns; column += Fit::kPanel) {
    size_t row = 0;
    for (; row + Fit::kRows <= rows; row += Fit::kRows) {
      a_ahead.ask();
      others_ahead.ask();
      tile<Fit::kRows, Fit>(m, a + row * m.inner, t + row * m.rank, column, c + row * m.columns);
    }
    if (row < rows && rows >= Fit::kRows && m.weight) {  // what is left, with some of the rows before it once more
      row = rows - Fit::kRows;
      tile<Fit::kRows, Fit>(m, a + row * m.inner, t + row * m.rank, column, c + row * m.columns);
      continue;
    }
    for (; row < rows; ++row) tile<1, Fit>(m, a + row * m.inner, t + row * m.rank, column, c + row * m.columns);
  }
}

// kVectors vectors of columns, or, where that is 1, what is left of one.
template <class Fit, size_t kVectors>
INLINE void add_columns(const float* a, const float* t, size_t rows, size_t width, size_t rank, size_t column,
                        float* sums) {
  const size_t count = kVectors == 1 ? width - column : Fit::kWidth;
  typename Fit::Vector sum[4][kVectors] = {};
  for (size_t row = 0; row < rows; ++row)
    for (size_t v = 0; v < kVectors; ++v) {
      const typename Fit::Vector values = load<Fit>(a + row * width + column + v * Fit::kWidth, count);
      for (size_t k = 0; k < 4; ++k) sum[k][v] += t[row * rank + k] * values;
    }
  for (size_t k = 0; k < 4; ++k)
    for (size_t v = 0; v < kVectors; ++v) {
      float* const to = sums + k * width + column + v * Fit::kWidth;
      store<Fit>(load<Fit>(to, count) + sum[k][v], to, count);
    }
}

// sums (rank, width) += t^T a, where a is (rows, width)
template <class Fit>
INLINE void add_products(const float* a, const float* t, size_t rows, size_t width, size_t rank, float* sums) {
  constexpr size_t kColumns = Fit::kSummed * Fit::kWidth;
  for (size_t four = 0; four < rank; four += 4) {
    size_t column = 0;
    for (; column + kColumns <= width; column += kColumns)
      add_columns<Fit, Fit::kSummed>(a, t + four, rows, width, rank, column, sums + four * width);
    for (; column < width; column += Fit::kWidth)
      add_columns<Fit, 1>(a, t + four, rows, width, rank, column, sums + four * width);
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

  Packed(const LowRankLinear& a, bool gradient, size_t panel)
      : inner(gradient ? a.out : a.in),
        columns(gradient ? a.in : a.out),
        rank(low_rank_padded(a.rank)),
        padded_columns(padded(columns, panel)),
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
template <class Fit>
INLINE void pack_transposed(const float* weight, size_t inner, size_t columns, float* to) {
  for (size_t column = 0; column < padded(columns, Fit::kPanel); column += Fit::kWidth)
    for (size_t k = 0; k < inner; k += Fit::kWidth) {
      typename Fit::Vector rows[Fit::kWidth] = {};
      for (size_t i = 0; i < Fit::kWidth; ++i)
        if (column + i < columns) rows[i] = load<Fit>(weight + (column + i) * inner + k, inner - k);
      transpose(rows);
      float* const panel = to + column / Fit::kPanel * inner * Fit::kPanel + column % Fit::kPanel;
      for (size_t i = 0; i < Fit::kWidth; ++i)
        if (k + i < inner) at<Fit>(panel + (k + i) * Fit::kPanel) = rows[i];
    }
}

// W (inner, columns) in panels.
template <class Fit>
INLINE void pack_straight(const float* weight, size_t inner, size_t columns, float* to) {
  for (size_t column = 0; column < padded(columns, Fit::kPanel); column += Fit::kPanel)
    for (size_t k = 0; k < inner; ++k, to += Fit::kPanel)
      for (size_t lane = column; lane < column + Fit::kPanel; lane += Fit::kWidth)
        at<Fit>(to + lane - column) = load<Fit>(weight + k * columns + lane, left(columns, lane));
}

template <class Fit>
INLINE void pack(const LowRankLinear& a, bool gradient, const Packed& p) {
  const float* const weight = static_cast<const float*>(a.weight);
  if (weight && gradient) pack_straight<Fit>(weight, p.inner, p.columns, p.weight);
  if (weight && !gradient) pack_transposed<Fit>(weight, p.inner, p.columns, p.weight);
  float *project = p.project, *expand = p.expand;
  for (size_t adapter = 0; adapter < a.batch; ++adapter) {
    const float *const u = a.u + adapter * a.out * a.rank, *const v = a.v + adapter * a.in * a.rank;
    const float *const s = a.s + adapter * a.rank, *const first = gradient ? u : v, *const second = gradient ? v : u;
    for (size_t k = 0; k < p.rank; ++k)
      for (size_t i = 0; i < p.inner; ++i) *project++ = k < a.rank ? first[i * a.rank + k] : 0;
    for (size_t panel = 0; panel < p.columns; panel += Fit::kPanel)
      for (size_t k = 0; k < p.rank; ++k)
        for (size_t i = panel; i < panel + Fit::kPanel; ++i)
          *expand++ = i < p.columns && k < a.rank ? a.scale * s[k] * second[i * a.rank + k] : 0;
  }
}

}  // namespace lora_comp
