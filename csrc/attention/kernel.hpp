// One window and one head at a time, all of it in the first cache: nothing of the size of the attention map is ever
// written to memory, and the backward pass computes the map again.
#if defined(LORA_COMP_ATTENTION_KERNEL) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_ATTENTION_KERNEL
#undef LORA_COMP_ATTENTION_KERNEL
#else
#define LORA_COMP_ATTENTION_KERNEL
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../simd/product.hpp"
#include "run.hpp"
#include "window.hpp"

SIMD_BEGIN
namespace lora_comp::attention::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;

// c (rows, kColumns) = a b, where a(r, k) = a[r * row + k * inner_step] and b is (inner, kColumns).
template <size_t kColumns>
void multiply(const float* a, size_t row, size_t inner_step, const float* b, float* c, size_t rows, size_t inner) {
  constexpr size_t kVectors = kColumns == kWidth ? 1 : 2;
  constexpr size_t kRows = 8 / kVectors;
  for (size_t r = 0; r < rows; r += kRows) {
    for (size_t column = 0; column < kColumns; column += kVectors * kWidth) {
      Sums<kRows, kVectors> sum = {};
      multiply_add<kRows, kVectors>(a + r * row, row, inner_step, b + column, kColumns, inner, sum);
      write_sums<kRows, kVectors>(sum, c + r * kColumns + column, kColumns);
    }
  }
}

template <size_t kTokens, size_t kDim>
struct alignas(64) Head {
  float q[kTokens][kDim], q_transposed[kDim][kTokens], k[kTokens][kDim], v[kTokens][kDim];
  float map[kTokens][kTokens];  // key, query
};

// Values of one head for all tokens of a window: zero outside the map and beyond `dim`.
template <size_t kTokens, size_t kDim>
void gather(const float* from, size_t stride, size_t dim, float scale, const Window<kTokens>& window,
            float (&to)[kTokens][kDim]) {
  std::memset(to, 0, sizeof to);
  for (size_t t = 0; t < kTokens; ++t)
    if (window.place[t] >= 0)
      for (size_t c = 0; c < dim; ++c) to[t][c] = scale * from[static_cast<size_t>(window.place[t]) * stride + c];
}

template <size_t kTokens, size_t kDim>
void scatter(const float (&from)[kTokens][kDim], float* to, size_t stride, size_t dim, float scale,
             const Window<kTokens>& window) {
  for (size_t t = 0; t < kTokens; ++t)
    if (window.place[t] >= 0)
      for (size_t c = 0; c < dim; ++c) to[static_cast<size_t>(window.place[t]) * stride + c] = scale * from[t][c];
}

template <size_t kTokens, size_t kDim>
void transpose(const float (&from)[kTokens][kDim], float (&to)[kDim][kTokens]) {
  for (size_t c = 0; c < kDim; ++c)
    for (size_t t = 0; t < kTokens; ++t) to[c][t] = from[t][c];
}

// Reads q, k, v and leaves exp(logit - the query's largest) in the map; `total` gets its sums over the keys.
template <size_t kTokens, size_t kDim>
void attend(const WindowAttention& a, const Window<kTokens>& window, size_t head, Head<kTokens, kDim>& h,
            float (&total)[kTokens]) {
  const size_t stride = 3 * a.heads * a.dim;
  const float* const q = static_cast<const float*>(a.qkv) + head * a.dim;
  gather(q, stride, a.dim, 1.0f / std::sqrt(static_cast<float>(a.dim)), window, h.q);
  gather(q + a.heads * a.dim, stride, a.dim, 1.0f, window, h.k);
  gather(q + 2 * a.heads * a.dim, stride, a.dim, 1.0f, window, h.v);
  transpose(h.q, h.q_transposed);
  multiply<kTokens>(h.k[0], kDim, 1, h.q_transposed[0], h.map[0], kTokens, kDim);
  const float* const bias = a.bias + head * kTokens * kTokens;
  Vector largest[kTokens / kWidth];
  for (Vector& x : largest) x = Vector{} - 3.0e38f;
  for (size_t j = 0; j < kTokens; ++j) {
    for (size_t v = 0; v < kTokens / kWidth; ++v) {
      Vector added;
      std::memcpy(&added, bias + j * kTokens + v * kWidth, sizeof added);
      Vector x = at(h.map[j] + v * kWidth) + added;
      if (window.mixed) {
        Integers region;
        std::memcpy(&region, window.region + v * kWidth, sizeof region);
        x += region == window.region[j] ? Vector{} : Vector{} + kMasked;
      }
      at(h.map[j] + v * kWidth) = x;
      largest[v] = x > largest[v] ? x : largest[v];
    }
  }
  for (size_t v = 0; v < kTokens / kWidth; ++v) {
    Vector sum = {};
    for (size_t j = 0; j < kTokens; ++j) {
      Vector& x = at(h.map[j] + v * kWidth);
      x = exp_of(x - largest[v]);
      sum += x;
    }
    std::memcpy(total + v * kWidth, &sum, sizeof sum);
  }
}

template <size_t kTokens, size_t kDim>
void forward_window(const WindowAttention& a, const Window<kTokens>& window, float* out) {
  Head<kTokens, kDim> h;
  alignas(64) float total[kTokens], result[kTokens][kDim];
  for (size_t head = 0; head < a.heads; ++head) {
    attend(a, window, head, h, total);
    multiply<kDim>(h.map[0], 1, kTokens, h.v[0], result[0], kTokens, kTokens);
    for (size_t t = 0; t < kTokens; ++t)
      for (size_t c = 0; c < kDim; ++c) result[t][c] /= total[t];
    scatter(result, out + head * a.dim, a.heads * a.dim, a.dim, 1.0f, window);
  }
}

template <size_t kTokens, size_t kDim>
void backward_window(const WindowAttention& a, const Window<kTokens>& window, const float* grad_out, float* grad_qkv,
                     float* grad_bias) {
  Head<kTokens, kDim> h;
  alignas(64) float total[kTokens], grad[kTokens][kDim], grad_transposed[kDim][kTokens], result[kTokens][kDim];
  alignas(64) float grad_map[kTokens][kTokens];
  const float scale = 1.0f / std::sqrt(static_cast<float>(a.dim));
  const size_t stride = 3 * a.heads * a.dim;
  for (size_t head = 0; head < a.heads; ++head) {
    attend(a, window, head, h, total);
    gather(grad_out + head * a.dim, a.heads * a.dim, a.dim, 1.0f, window, grad);
    transpose(grad, grad_transposed);
    multiply<kTokens>(h.v[0], kDim, 1, grad_transposed[0], grad_map[0], kTokens, kDim);
    for (size_t v = 0; v < kTokens; v += kWidth) {
      const Vector inverse = 1.0f / at(total + v);
      Vector mean = {};
      for (size_t j = 0; j < kTokens; ++j) {
        at(h.map[j] + v) *= inverse;
        mean += at(h.map[j] + v) * at(grad_map[j] + v);
      }
      for (size_t j = 0; j < kTokens; ++j) at(grad_map[j] + v) = at(h.map[j] + v) * (at(grad_map[j] + v) - mean);
    }
    for (size_t j = 0; grad_bias && j < kTokens; ++j)
      for (size_t i = 0; i < kTokens; ++i) grad_bias[(head * kTokens + j) * kTokens + i] += grad_map[j][i];
    float* const to = grad_qkv + head * a.dim;
    multiply<kDim>(grad_map[0], 1, kTokens, h.k[0], result[0], kTokens, kTokens);
    scatter(result, to, stride, a.dim, scale, window);
    multiply<kDim>(grad_map[0], kTokens, 1, h.q[0], result[0], kTokens, kTokens);
    scatter(result, to + a.heads * a.dim, stride, a.dim, 1.0f, window);
    multiply<kDim>(h.map[0], kTokens, 1, grad[0], result[0], kTokens, kTokens);
    scatter(result, to + 2 * a.heads * a.dim, stride, a.dim, 1.0f, window);
  }
}

template <size_t kTokens, size_t kDim>
void run_row(const Job& job, size_t row) {
  const Windows windows{job.a.height, job.a.width, job.a.window, job.a.shift};
  const size_t rows = windows.rows();
  for (size_t left = 0; left < job.a.width; left += job.a.window) {
    const Window<kTokens> window(windows, row / rows, row % rows * job.a.window, left);
    if (job.grad_out)
      backward_window<kTokens, kDim>(job.a, window, job.grad_out, job.out, job.grad_bias);
    else
      forward_window<kTokens, kDim>(job.a, window, job.out);
  }
}

inline void run_any(const Job& job, size_t row) {
  if (job.a.window == 4) return job.a.dim <= 16 ? run_row<16, 16>(job, row) : run_row<16, 32>(job, row);
  return job.a.dim <= 16 ? run_row<64, 16>(job, row) : run_row<64, 32>(job, row);
}

}  // namespace
}  // namespace lora_comp::attention::SIMD_TARGET
SIMD_END
#endif
