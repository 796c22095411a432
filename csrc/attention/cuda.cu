// Attention in shifted windows on a GPU: a block takes a window and a head from queries, keys and values to what the
// projection takes, in shared memory. In bfloat16 the five products of the two passes run on tensor cores; sums and the
// softmax are float32. Logits lie with a key in each row, as the bias does, so that neighbouring threads, which have
// neighbouring queries, read neighbouring numbers.
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "../cuda/kernel.cuh"
#include "window.hpp"
#include "window_attention.hpp"

namespace lora_comp {
namespace {

using cuda::multiply;
using cuda::stride;

constexpr int kHalves = 2;  // of the keys, to each query a thread

struct Job {
  const void* qkv;
  const float* bias;
  Windows windows;
  int heads, dim;
  const void* grad_out;  // null: forward
  void* to;              // out, or grad_qkv
  float* grad_bias;
};

// What a block has in shared memory. T: float or bfloat16.
template <class T, int kTokens, int kDim>
struct Memory {
  static constexpr int kRow = stride<T>(kDim), kWeights = stride<T>(kTokens);
  static constexpr int kLogits = stride<float>(kTokens > kDim ? kTokens : kDim);

  float logits[kTokens * kLogits];  // (kTokens, kTokens), and in turn what is derived from them, (kTokens, kDim) too
  float reduced[2][kHalves][kTokens];
  __align__(32) T q[kTokens * kRow];  // these four (kTokens, kDim)
  __align__(32) T k[kTokens * kRow];
  __align__(32) T v[kTokens * kRow];
  __align__(32) T grad[kTokens * kRow];
  __align__(32) T weights[kTokens * kWeights];  // key, query: after the softmax, and then the logits' gradients
  ptrdiff_t place[kTokens];
  int32_t region[kTokens];
};

template <class T, int kTokens, int kDim>
__device__ void read(T* to, const void* from, size_t token_stride, size_t offset, int dim, float scale,
                     const ptrdiff_t* place) {
  constexpr int kRow = Memory<T, kTokens, kDim>::kRow;
  for (int i = threadIdx.x; i < kTokens * kDim; i += blockDim.x) {
    const int token = i / kDim, d = i % kDim;
    const bool inside = d < dim && place[token] >= 0;
    const T* const x = static_cast<const T*>(from) + (inside ? place[token] * token_stride + offset + d : 0);
    to[token * kRow + d] = cuda::rounded<T>(inside ? scale * cuda::value(*x) : 0.0f);
  }
}

template <class T, int kTokens, int kDim>
__device__ void write(const float* from, int from_stride, void* to, size_t token_stride, size_t offset, int dim,
                      float scale, const ptrdiff_t* place) {
  for (int i = threadIdx.x; i < kTokens * kDim; i += blockDim.x) {
    const int token = i / kDim, d = i % kDim;
    if (d < dim && place[token] >= 0)
      static_cast<T*>(to)[place[token] * token_stride + offset + d] =
          cuda::rounded<T>(scale * from[token * from_stride + d]);
  }
}

// A sum or maximum over the keys of each query, from that over each half.
template <int kTokens, class Combine>
__device__ float over_halves(float (*reduced)[kTokens], float own, Combine combine) {
  const int query = threadIdx.x % kTokens, half = threadIdx.x / kTokens;
  reduced[half][query] = own;
  __syncthreads();
  return combine(reduced[0][query], reduced[1][query]);
}

template <class T, int kTokens, int kDim>
__device__ void softmax(Memory<T, kTokens, kDim>& m, const float* bias) {
  constexpr int kLogits = Memory<T, kTokens, kDim>::kLogits;
  const int query = threadIdx.x % kTokens, half = threadIdx.x / kTokens;
  float most = -INFINITY;
  for (int key = half; key < kTokens; key += kHalves) {
    float& logit = m.logits[key * kLogits + query];
    logit += bias[key * kTokens + query] + (m.region[key] == m.region[query] ? 0.0f : kMasked);
    most = max(most, logit);
  }
  most = over_halves<kTokens>(m.reduced[0], most, [](float a, float b) { return max(a, b); });
  float sum = 0;
  for (int key = half; key < kTokens; key += kHalves) {
    float& logit = m.logits[key * kLogits + query];
    logit = expf(logit - most);
    sum += logit;
  }
  sum = over_halves<kTokens>(m.reduced[1], sum, [](float a, float b) { return a + b; });
  for (int key = half; key < kTokens; key += kHalves)
    m.weights[key * m.kWeights + query] = cuda::rounded<T>(m.logits[key * kLogits + query] / sum);
}

// blockIdx: window of a map, head, map. kHalves threads to a token.
template <class T, int kSide, int kDim>
__global__ void __launch_bounds__(kHalves * kSide * kSide) attend(Job job) {
  constexpr int kTokens = kSide * kSide;
  using M = Memory<T, kTokens, kDim>;
  constexpr int kRow = M::kRow, kWeights = M::kWeights, kLogits = M::kLogits;
  LORA_COMP_SHARED(memory);
  M& m = *reinterpret_cast<M*>(memory);
  const int query = threadIdx.x % kTokens, half = threadIdx.x / kTokens;
  const int across = static_cast<int>((job.windows.width + kSide - 1) / kSide);
  if (half == 0) {
    const Token token(job.windows, blockIdx.z, blockIdx.x / across * kSide, blockIdx.x % across * kSide, query);
    m.place[query] = token.place;
    m.region[query] = token.region;
  }
  __syncthreads();
  const size_t channels = static_cast<size_t>(job.heads) * job.dim, offset = static_cast<size_t>(blockIdx.y) * job.dim;
  const float scale = rsqrtf(static_cast<float>(job.dim));
  read<T, kTokens, kDim>(m.q, job.qkv, 3 * channels, offset, job.dim, scale, m.place);
  read<T, kTokens, kDim>(m.k, job.qkv, 3 * channels, channels + offset, job.dim, 1, m.place);
  read<T, kTokens, kDim>(m.v, job.qkv, 3 * channels, 2 * channels + offset, job.dim, 1, m.place);
  if (job.grad_out) read<T, kTokens, kDim>(m.grad, job.grad_out, channels, offset, job.dim, 1, m.place);
  __syncthreads();
  multiply<kTokens, kTokens, kDim, false, true>(m.k, kRow, m.q, kRow, m.logits, kLogits);
  __syncthreads();
  softmax(m, job.bias + static_cast<size_t>(blockIdx.y) * kTokens * kTokens);
  __syncthreads();
  if (!job.grad_out) {
    multiply<kTokens, kDim, kTokens, true, false>(m.weights, kWeights, m.v, kRow, m.logits, kLogits);
    __syncthreads();
    write<T, kTokens, kDim>(m.logits, kLogits, job.to, channels, offset, job.dim, 1, m.place);
    return;
  }
  multiply<kTokens, kDim, kTokens, false, false>(m.weights, kWeights, m.grad, kRow, m.logits, kLogits);
  __syncthreads();
  write<T, kTokens, kDim>(m.logits, kLogits, job.to, 3 * channels, 2 * channels + offset, job.dim, 1, m.place);
  __syncthreads();
  multiply<kTokens, kTokens, kDim, false, true>(m.v, kRow, m.grad, kRow, m.logits, kLogits);  // of the weights
  __syncthreads();
  float mean = 0;
  for (int key = half; key < kTokens; key += kHalves)
    mean += cuda::value(m.weights[key * kWeights + query]) * m.logits[key * kLogits + query];
  mean = over_halves<kTokens>(m.reduced[0], mean, [](float a, float b) { return a + b; });
  for (int key = half; key < kTokens; key += kHalves) {
    T& weight = m.weights[key * kWeights + query];
    const float gradient = cuda::value(weight) * (m.logits[key * kLogits + query] - mean);
    weight = cuda::rounded<T>(gradient);
    if (job.grad_bias && m.place[query] >= 0)
      atomicAdd(job.grad_bias + (static_cast<size_t>(blockIdx.y) * kTokens + key) * kTokens + query, gradient);
  }
  __syncthreads();
  multiply<kTokens, kDim, kTokens, true, false>(m.weights, kWeights, m.k, kRow, m.logits, kLogits);
  __syncthreads();
  write<T, kTokens, kDim>(m.logits, kLogits, job.to, 3 * channels, offset, job.dim, scale, m.place);
  __syncthreads();
  multiply<kTokens, kDim, kTokens, false, false>(m.weights, kWeights, m.q, kRow, m.logits, kLogits);
  __syncthreads();
  write<T, kTokens, kDim>(m.logits, kLogits, job.to, 3 * channels, channels + offset, job.dim, 1, m.place);
}

template <class T, int kSide, int kDim>
void run(const Job& job, size_t batch, uintptr_t stream) {
  constexpr int kTokens = kSide * kSide;
  const size_t rows = job.windows.rows(), columns = (job.windows.width + kSide - 1) / kSide;
  const dim3 grid(static_cast<unsigned>(rows * columns), job.heads, static_cast<unsigned>(batch));
  cuda::launch("window_attention", attend<T, kSide, kDim>, grid, kHalves * kTokens, sizeof(Memory<T, kTokens, kDim>),
               stream, job);
}

template <class T>
void run(const Job& job, size_t batch, uintptr_t stream) {
  if (job.windows.window == 8)
    return job.dim <= 16 ? run<T, 8, 16>(job, batch, stream) : run<T, 8, 32>(job, batch, stream);
  return job.dim <= 16 ? run<T, 4, 16>(job, batch, stream) : run<T, 4, 32>(job, batch, stream);
}

void run(const WindowAttention& a, const void* grad_out, void* to, float* grad_bias, bool bfloat16, uintptr_t stream) {
  if (!window_attention_fits(a)) throw std::invalid_argument("windows of 4 or 8 and heads of up to 32");
  const Job job{a.qkv,
                a.bias,
                {a.height, a.width, a.window, a.shift},
                static_cast<int>(a.heads),
                static_cast<int>(a.dim),
                grad_out,
                to,
                grad_bias};
  (bfloat16 ? run<__nv_bfloat16> : run<float>)(job, a.batch, stream);
}

}  // namespace

void window_attention_forward_cuda(const WindowAttention& a, void* out, bool bfloat16, uintptr_t stream) {
  run(a, nullptr, out, nullptr, bfloat16, stream);
}

void window_attention_backward_cuda(const WindowAttention& a, const void* grad_out, void* grad_qkv, float* grad_bias,
                                    bool bfloat16, uintptr_t stream) {
  run(a, grad_out, grad_qkv, grad_bias, bfloat16, stream);
}

}  // namespace lora_comp
