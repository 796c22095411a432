// As much of CUDA as csrc's kernels use, on the processor: for tests where there is no GPU. A thread of a block is a
// thread, so that ThreadSanitizer finds a barrier that is missing and AddressSanitizer what lies out of bounds; blocks
// run one after the other. Nothing here is fast, and nothing says what a GPU takes for it.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

constexpr unsigned kWarp = 32;

class Barrier {
 public:
  explicit Barrier(unsigned threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

struct Warp {
  Barrier barrier;
  float values[kWarp];
  explicit Warp(unsigned threads) : barrier(threads) {}
};

struct Block {
  Barrier barrier;
  std::vector<std::unique_ptr<Warp>> warps;
  std::unique_ptr<char, decltype(&std::free)> shared;  // of exactly its size

  Block(unsigned threads, size_t bytes)
      : barrier(threads), shared(static_cast<char*>(std::aligned_alloc(128, (bytes + 127) / 128 * 128)), &std::free) {
    for (unsigned first = 0; first < threads; first += kWarp)
      warps.push_back(std::make_unique<Warp>(min(kWarp, threads - first)));
  }
};

inline thread_local Block* block = nullptr;

inline unsigned thread() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
inline unsigned lane() { return thread() % kWarp; }
inline Warp& warp() { return *block->warps[thread() / kWarp]; }
inline char* shared() { return block->shared.get(); }

template <class Kernel, class... Arguments>
void run(Kernel kernel, dim3 grid, dim3 size, size_t bytes, Arguments... arguments) {
  const unsigned threads = size.x * size.y * size.z;
  for (unsigned i = 0; i < grid.x * grid.y * grid.z; ++i) {
    Block own(threads, bytes);
    std::vector<std::thread> all;
    for (unsigned t = 0; t < threads; ++t)
      all.emplace_back([&, t] {
        block = &own;
        gridDim = grid, blockDim = size;
        blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        threadIdx = {t % size.x, t / size.x % size.y, t / size.x / size.y};
        kernel(arguments...);
      });
    for (std::thread& thread : all) thread.join();
  }
}

}  // namespace emulated

inline void __syncthreads() { emulated::block->barrier.wait(); }
inline void __syncwarp() { emulated::warp().barrier.wait(); }

inline float __shfl_xor_sync(unsigned, float value, unsigned mask) {
  emulated::Warp& warp = emulated::warp();
  warp.values[emulated::lane()] = value;
  __syncwarp();
  const float other = warp.values[emulated::lane() ^ mask];
  __syncwarp();
  return other;
}

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

inline float atomicAdd(float* to, float value) {
  float before, after;
  __atomic_load(to, &before, __ATOMIC_RELAXED);
  do {
    after = before + value;
  } while (!__atomic_compare_exchange(to, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x * grid.y * grid.z == 0 || grid.y > 65535 || grid.z > 65535 ||
      config->dynamicSmemBytes > 99 * 1024)  // the least of what sm_80, 86, 89 and 90 have
    return cudaErrorInvalidValue;
  emulated::run(kernel, grid, block, config->dynamicSmemBytes, static_cast<Parameters>(arguments)...);
  return cudaSuccess;
}
