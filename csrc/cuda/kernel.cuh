// What the CUDA kernels share: launching, numbers of both types, and products of small matrices in shared memory. Only
// what tests/csrc/emulated knows is used, so that the kernels can be tested without a GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#define LORA_COMP_SHARED(name) extern __shared__ __align__(128) char name[]
#define LORA_COMP_UNROLL _Pragma("unroll 8")
#else
#define LORA_COMP_UNROLL
#define LORA_COMP_SHARED(name) char* const name = emulated::shared()
#endif

namespace lora_comp::cuda {

constexpr int kWarp = 32;
constexpr int kTile = 16;  // the side of what a warp multiplies at once

__device__ inline float value(float x) { return x; }
__device__ inline float value(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ T rounded(float x);
template <>
__device__ inline float rounded<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 rounded<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}

// Numbers between rows of a tile of `width` in shared memory: the rows start in different banks, and where wmma reads
// or writes it wants them.
template <class T>
__host__ __device__ constexpr int stride(int width) {
  return width + 16 / static_cast<int>(sizeof(T));
}

// c (kRows, kColumns) = a b, all threads of a block together: a (kRows, kInner) or, turned, its transpose in memory,
// b (kInner, kColumns) likewise. Strides count numbers.
template <int kRows, int kColumns, int kInner, bool kTurnedA, bool kTurnedB>
__device__ void multiply(const float* a, int stride_a, const float* b, int stride_b, float* c, int stride_c) {
  constexpr int kDown = 2, kAcross = 4;  // a thread's part
  constexpr int kParts = kColumns / kAcross;
  for (int part = threadIdx.x; part < kRows / kDown * kParts; part += blockDim.x) {
    const int row = part / kParts * kDown, column = part % kParts * kAcross;
    float sums[kDown][kAcross] = {};
    for (int k = 0; k < kInner; ++k)
      for (int i = 0; i < kDown; ++i) {
        const float left = kTurnedA ? a[k * stride_a + row + i] : a[(row + i) * stride_a + k];
        for (int j = 0; j < kAcross; ++j)
          sums[i][j] += left * (kTurnedB ? b[(column + j) * stride_b + k] : b[k * stride_b + column + j]);
      }
    for (int i = 0; i < kDown; ++i)
      for (int j = 0; j < kAcross; ++j) c[(row + i) * stride_c + column + j] = sums[i][j];
  }
}

template <bool kTurned>
struct Layout {
  using type = nvcuda::wmma::row_major;
};
template <>
struct Layout<true> {
  using type = nvcuda::wmma::col_major;
};

template <bool kTurned>
using Left =
    nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, kTile, kTile, kTile, __nv_bfloat16, typename Layout<kTurned>::type>;
template <bool kTurned>
using Right =
    nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, kTile, kTile, kTile, __nv_bfloat16, typename Layout<kTurned>::type>;
using Sums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kTile, kTile, kTile, float>;

// Where the tile (i, j) of 16 x 16 starts.
template <class T>
__device__ T* tile(T* start, int stride, bool turned, int i, int j) {
  return turned ? start + j * kTile * stride + i * kTile : start + i * kTile * stride + j * kTile;
}

// The same in bfloat16, on tensor cores.
template <int kRows, int kColumns, int kInner, bool kTurnedA, bool kTurnedB>
__device__ void multiply(const __nv_bfloat16* a, int stride_a, const __nv_bfloat16* b, int stride_b, float* c,
                         int stride_c) {
  constexpr int kAcross = kColumns / kTile;
  for (int part = threadIdx.x / kWarp; part < kRows / kTile * kAcross; part += blockDim.x / kWarp) {
    const int row = part / kAcross, column = part % kAcross;
    Left<kTurnedA> left;
    Right<kTurnedB> right;
    Sums sums;
    nvcuda::wmma::fill_fragment(sums, 0.0f);
    for (int k = 0; k < kInner / kTile; ++k) {
      nvcuda::wmma::load_matrix_sync(left, tile(a, stride_a, kTurnedA, row, k), stride_a);
      nvcuda::wmma::load_matrix_sync(right, tile(b, stride_b, kTurnedB, k, column), stride_b);
      nvcuda::wmma::mma_sync(sums, left, right, sums);
    }
    nvcuda::wmma::store_matrix_sync(tile(c, stride_c, false, row, column), sums, stride_c, nvcuda::wmma::mem_row_major);
  }
}

inline void check(cudaError_t error, const char* name) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

// Enqueues; throws with CUDA's message if that fails.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, uintptr_t stream,
            Arguments... arguments) {
  constexpr size_t kGranted = 48 * 1024;  // without being asked for
  if (shared > kGranted)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), name);
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared;
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

inline unsigned blocks(size_t size, size_t each) { return static_cast<unsigned>((size + each - 1) / each); }

}  // namespace lora_comp::cuda
