// What the low-rank update adds to a product that is there already, and its gradients. All sums are float32, and each
// is added up in an order that depends on the shapes alone.
#include <cuda_bf16.h>

#include <stdexcept>
#include <string>

#include "svd_lora.hpp"

namespace lora_comp {
namespace {

constexpr int kWarp = 32;
constexpr int kRows = 8;  // a block's rows: one a warp while it projects, all of them while it expands
constexpr int kSlices = 8;  // of the rows, in a block that sums over them

__device__ float value(float x) { return x; }
__device__ float value(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void add(float* to, float x) { *to += x; }
__device__ void add(__nv_bfloat16* to, float x) { *to = __float2bfloat16(__bfloat162float(*to) + x); }

// t = a P, and c += scale (t * s) Q^T unless c is null. a (batch, n, inner), P (batch, inner, rank), Q (batch, columns,
// rank), t (batch, n, padded), c (batch, n, columns). blockIdx.y: the adapter.
template <class T>
__global__ void update(const T* a, const float* p, const float* q, const float* s, float scale, size_t n, size_t inner,
                       size_t columns, int rank, int padded, float* t, T* c) {
  const size_t first = static_cast<size_t>(blockIdx.x) * kRows, adapter = blockIdx.y;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  a += adapter * n * inner;
  p += adapter * inner * rank;
  q += adapter * columns * rank;
  s += adapter * rank;
  t += adapter * n * padded;
  const size_t row = first + warp;
  for (int k = 0; row < n && k < padded; ++k) {
    float sum = 0;
    for (size_t i = lane; k < rank && i < inner; i += kWarp) sum += value(a[row * inner + i]) * p[i * rank + k];
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) t[row * padded + k] = sum;
  }
  __syncthreads();  // after it the block sees its own writes to t
  if (!c) return;
  c += adapter * n * columns;
  for (size_t column = threadIdx.x; column < columns; column += blockDim.x)
    for (size_t r = first; r < min(first + kRows, n); ++r) {
      float sum = 0;
      for (int k = 0; k < rank; ++k) sum += t[r * padded + k] * s[k] * q[column * rank + k];
      add(c + r * columns + column, scale * sum);
    }
}

// to (batch, width, rank) = scale s * (a^T t), where a is (batch, n, width). A thread sums one column over each
// kSlices-th row; blockIdx: columns, rank, adapter.
template <class T>
__global__ void sum_products(const T* a, const float* t, const float* s, float scale, size_t n, size_t width, int rank,
                             int padded, float* to) {
  __shared__ float sums[kSlices][kWarp];
  const size_t column = static_cast<size_t>(blockIdx.x) * kWarp + threadIdx.x, adapter = blockIdx.z;
  const int k = blockIdx.y;
  float sum = 0;
  for (size_t row = threadIdx.y; column < width && row < n; row += kSlices)
    sum += value(a[(adapter * n + row) * width + column]) * t[(adapter * n + row) * padded + k];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int slice = 1; slice < kSlices; ++slice) sum += sums[slice][threadIdx.x];
  to[(adapter * width + column) * rank + k] = scale * s[adapter * rank + k] * sum;
}

// to (batch, rank) = scale * the sum over the rows of t * grad_t. A warp for each; blockIdx: rank, adapter.
__global__ void sum_rows(const float* t, const float* grad_t, float scale, size_t n, int rank, int padded, float* to) {
  const size_t adapter = blockIdx.y;
  const int k = blockIdx.x;
  float sum = 0;
  for (size_t row = threadIdx.x; row < n; row += kWarp) {
    const size_t at = (adapter * n + row) * padded + k;
    sum += t[at] * grad_t[at];
  }
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x == 0) to[adapter * rank + k] = scale * sum;
}

void check(const char* name) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

unsigned blocks(size_t size, size_t each) { return static_cast<unsigned>((size + each - 1) / each); }

template <class T>
void forward(const LowRankLinear& a, void* y, float* t, cudaStream_t stream) {
  const int rank = static_cast<int>(a.rank), padded = static_cast<int>(low_rank_padded(a.rank));
  update<<<dim3(blocks(a.n, kRows), a.batch), kRows * kWarp, 0, stream>>>(
      static_cast<const T*>(a.x), a.v, a.u, a.s, a.scale, a.n, a.in, a.out, rank, padded, t, static_cast<T*>(y));
  check("low_rank_linear_forward");
}

template <class T>
void backward(const LowRankLinear& a, const void* grad_y, const float* t, float* grad_t, const LowRankGradients& grads,
              cudaStream_t stream) {
  const int rank = static_cast<int>(a.rank), padded = static_cast<int>(low_rank_padded(a.rank));
  const T* const gradient = static_cast<const T*>(grad_y);
  update<<<dim3(blocks(a.n, kRows), a.batch), kRows * kWarp, 0, stream>>>(
      gradient, a.u, a.v, a.s, a.scale, a.n, a.out, a.in, rank, padded, grad_t, static_cast<T*>(grads.x));
  const dim3 threads(kWarp, kSlices);
  if (grads.u)
    sum_products<<<dim3(blocks(a.out, kWarp), rank, a.batch), threads, 0, stream>>>(
        gradient, t, a.s, a.scale, a.n, a.out, rank, padded, grads.u);
  if (grads.v)
    sum_products<<<dim3(blocks(a.in, kWarp), rank, a.batch), threads, 0, stream>>>(
        static_cast<const T*>(a.x), grad_t, a.s, a.scale, a.n, a.in, rank, padded, grads.v);
  if (grads.s)
    sum_rows<<<dim3(rank, a.batch), kWarp, 0, stream>>>(t, grad_t, a.scale, a.n, rank, padded, grads.s);
  check("low_rank_linear_backward");
}

}  // namespace

void low_rank_linear_forward_cuda(const LowRankLinear& a, void* y, float* t, uintptr_t stream) {
  const auto run = a.bfloat16 ? forward<__nv_bfloat16> : forward<float>;
  run(a, y, t, reinterpret_cast<cudaStream_t>(stream));
}

void low_rank_linear_backward_cuda(const LowRankLinear& a, const void* grad_y, const float* t, float* grad_t,
                                   const LowRankGradients& grads, uintptr_t stream) {
  const auto run = a.bfloat16 ? backward<__nv_bfloat16> : backward<float>;
  run(a, grad_y, t, grad_t, grads, reinterpret_cast<cudaStream_t>(stream));
}

}  // namespace lora_comp
