// Products of 16 x 16 tiles by a warp (nvcuda::wmma), on the processor: each thread has the whole tile. What a GPU
// demands of addresses and strides is checked.
#pragma once

#include "check.hpp"
#include "cuda_bf16.h"
#include "cuda_runtime.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = row_major>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16);
  float at[16][16];
};

template <class Fragment>
void fill_fragment(Fragment& fragment, float value) {
  for (auto& row : fragment.at)
    for (float& x : row) x = value;
}

template <class T>
void check_tile(const T* tile, unsigned stride) {
  CHECK(reinterpret_cast<uintptr_t>(tile) % 32 == 0 && stride * sizeof(T) % 16 == 0);
}

template <class Use>
void load_matrix_sync(fragment<Use, 16, 16, 16, __nv_bfloat16, row_major>& to, const __nv_bfloat16* tile,
                      unsigned stride) {
  check_tile(tile, stride);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to.at[i][j] = __bfloat162float(tile[i * stride + j]);
}

template <class Use>
void load_matrix_sync(fragment<Use, 16, 16, 16, __nv_bfloat16, col_major>& to, const __nv_bfloat16* tile,
                      unsigned stride) {
  check_tile(tile, stride);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to.at[i][j] = __bfloat162float(tile[j * stride + i]);
}

template <class Accumulator, class A, class B>
void mma_sync(Accumulator& d, const A& a, const B& b, const Accumulator& c) {
  Accumulator sums = c;
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 16; ++j) sums.at[i][j] += a.at[i][k] * b.at[k][j];
  d = sums;
}

inline void store_matrix_sync(float* tile, const fragment<accumulator, 16, 16, 16, float>& from, unsigned stride,
                              layout_t) {
  check_tile(tile, stride);
  if (emulated::lane() == 0)
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j) tile[i * stride + j] = from.at[i][j];
}

}  // namespace nvcuda::wmma
