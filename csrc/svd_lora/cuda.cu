#include <stdexcept>
#include <string>

#include "svd_lora.hpp"

namespace lora_comp {
namespace {

constexpr int kWarp = 32;
constexpr int kRows = 8;  // a block's rows: one a warp while it projects, all of them while it expands

__global__ void low_rank_update_kernel(const LowRankUpdate a) {
  __shared__ float t[kRows][kMaxRank];
  const size_t first = static_cast<size_t>(blockIdx.x) * kRows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (first + warp < a.n) {
    const float* const x = a.x + static_cast<ptrdiff_t>(first + warp) * a.x_stride;
    float sums[kMaxRank] = {};
    for (size_t i = lane; i < a.in; i += kWarp) {
      const float value = x[i];
#pragma unroll
      for (int k = 0; k < kMaxRank; ++k)
        if (k < a.rank) sums[k] += value * a.v[i * a.rank + k];
    }
#pragma unroll
    for (int k = 0; k < kMaxRank; ++k) {
      for (int step = kWarp / 2; step > 0; step /= 2) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], step);
      if (lane == 0 && k < a.rank) t[warp][k] = a.scale * a.s[k] * sums[k];
    }
  }
  __syncthreads();
  for (size_t o = threadIdx.x; o < a.out; o += blockDim.x)
    for (int row = 0; row < kRows && first + row < a.n; ++row) {
      float sum = 0;
      for (int k = 0; k < a.rank; ++k) sum += t[row][k] * a.u[o * a.rank + k];
      a.y[static_cast<ptrdiff_t>(first + row) * a.y_stride + static_cast<ptrdiff_t>(o)] += sum;
    }
}

}  // namespace

void low_rank_update_cuda(const LowRankUpdate& a, uintptr_t stream) {
  if (a.n == 0 || a.out == 0) return;
  const unsigned blocks = static_cast<unsigned>((a.n + kRows - 1) / kRows);
  low_rank_update_kernel<<<blocks, kRows * kWarp, 0, reinterpret_cast<cudaStream_t>(stream)>>>(a);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("low_rank_update: ") + cudaGetErrorString(error));
}

}  // namespace lora_comp
