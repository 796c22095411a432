// A linear layer with a low-rank update on a GPU. In bfloat16, up to a rank of 16, one kernel on tensor cores makes the
// product and the update, forward and for the gradient of x; otherwise torch multiplies by the weight, and `update`
// adds to what is there. All sums are float32, and each is added up in an order that depends on the shapes alone.
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "../cuda/kernel.cuh"
#include "svd_lora.hpp"

namespace lora_comp {
namespace {

using cuda::kTile;
using cuda::kWarp;
using cuda::stride;
using Half = __nv_bfloat16;

// c (batch, n, columns) = a W + scale ((a P) * s) Q^T + bias and t (batch, n, padded) = a P: a (batch, n, inner), P
// (batch, inner, rank), Q (batch, columns, rank). W is (inner, columns) in memory or, as forward, its transpose.
struct Job {
  const void *a, *weight, *bias;
  const float *p, *q, *s;
  float scale;
  size_t batch, n, inner, columns;
  int rank, padded;
  float* t;
  void* c;
};

constexpr int kRows = 8;  // a block's rows in `update`: one a warp while it projects, all of them while it expands

// c += scale ((a P) * s) Q^T, unless c is null. blockIdx.y: the adapter.
template <class T>
__global__ void update(Job job) {
  const size_t first = static_cast<size_t>(blockIdx.x) * kRows, adapter = blockIdx.y;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const T* const a = static_cast<const T*>(job.a) + adapter * job.n * job.inner;
  const float* const p = job.p + adapter * job.inner * job.rank;
  const float* const q = job.q + adapter * job.columns * job.rank;
  float* const t = job.t + adapter * job.n * job.padded;
  const size_t row = first + warp;
  for (int k = 0; row < job.n && k < job.padded; ++k) {
    float sum = 0;
    for (size_t i = lane; k < job.rank && i < job.inner; i += kWarp)
      sum += cuda::value(a[row * job.inner + i]) * p[i * job.rank + k];
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) t[row * job.padded + k] = sum;
  }
  __syncthreads();  // after it the block sees its own writes to t
  if (!job.c) return;
  T* const c = static_cast<T*>(job.c) + adapter * job.n * job.columns;
  for (size_t column = threadIdx.x; column < job.columns; column += blockDim.x)
    for (size_t r = first; r < min(first + kRows, job.n); ++r) {
      float sum = 0;
      for (int k = 0; k < job.rank; ++k)
        sum += t[r * job.padded + k] * job.s[adapter * job.rank + k] * q[column * job.rank + k];
      T& to = c[r * job.columns + column];
      to = cuda::rounded<T>(cuda::value(to) + job.scale * sum);
    }
}

struct __align__(16) Eight {
  Half at[8];
};

// A tile (kDown, kAcross) of a matrix, zero beyond `rows` and `columns`.
template <int kDown, int kAcross>
__device__ void read(Half* to, const Half* from, size_t from_stride, size_t rows, size_t columns) {
  constexpr int kEights = kAcross / 8;
  const bool aligned = from_stride % 8 == 0 && columns % 8 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  for (int i = threadIdx.x; i < kDown * kEights; i += blockDim.x) {
    const size_t row = i / kEights, column = i % kEights * 8;
    const Half* const at = from + row * from_stride + column;
    Eight eight{};
    if (aligned && row < rows && column < columns) eight = *reinterpret_cast<const Eight*>(at);
    for (size_t j = 0; !aligned && j < 8; ++j)
      if (row < rows && column + j < columns) eight.at[j] = at[j];
    *reinterpret_cast<Eight*>(to + row * stride<Half>(kAcross) + column) = eight;
  }
}

// Rows of a factor (rows, rank), rounded, zero beyond.
template <int kDown>
__device__ void read_factor(Half* to, const float* from, size_t rows, int rank) {
  for (int i = threadIdx.x; i < kDown * kTile; i += blockDim.x) {
    const size_t row = i / kTile;
    const int k = i % kTile;
    to[row * stride<Half>(kTile) + k] = cuda::rounded<Half>(row < rows && k < rank ? from[row * rank + k] : 0.0f);
  }
}

constexpr int kBlock = 64, kStep = 32, kWarps = kBlock / kTile;  // rows and columns, part of the sum; 16 rows a warp

struct Tiles {
  static_assert(kStep * stride<Half>(kBlock) <= kBlock * stride<Half>(kStep));
  static constexpr int kFactor = stride<Half>(kTile), kOut = stride<float>(kBlock), kT = stride<float>(kTile);
  __align__(32) Half a[kBlock * stride<Half>(kStep)];
  __align__(32) Half weight[kBlock * stride<Half>(kStep)];  // or (kStep, kBlock), which takes less
  __align__(32) Half p[kStep * kFactor];
  __align__(32) Half q[kBlock * kFactor];
  __align__(32) Half scaled[kBlock * kFactor];  // t * s
  __align__(32) float t[kBlock * kT];
  __align__(32) float out[kBlock * kOut];
};

// A block makes 64 x 64 numbers of c, and for it projects its 64 rows, which is one tile's product in five. blockIdx:
// rows, columns, adapter. kTransposed: the weight is (columns, inner) in memory.
template <bool kTransposed>
__global__ void __launch_bounds__(kWarps* kWarp) multiply(Job job) {
  namespace wmma = nvcuda::wmma;
  LORA_COMP_SHARED(memory);
  Tiles& m = *reinterpret_cast<Tiles*>(memory);
  const size_t row = static_cast<size_t>(blockIdx.x) * kBlock, column = static_cast<size_t>(blockIdx.y) * kBlock;
  const size_t adapter = blockIdx.z, rows = job.n - row, columns = job.columns - column;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Half* const a = static_cast<const Half*>(job.a) + (adapter * job.n + row) * job.inner;
  const Half* const weight = static_cast<const Half*>(job.weight) + (kTransposed ? column * job.inner : column);
  constexpr int kA = stride<Half>(kStep), kW = stride<Half>(kTransposed ? kStep : kBlock), kFactor = Tiles::kFactor;
  cuda::Left<false> left;
  cuda::Right<kTransposed> right;
  cuda::Sums sums[kBlock / kTile], projected;
  for (cuda::Sums& sum : sums) wmma::fill_fragment(sum, 0.0f);
  wmma::fill_fragment(projected, 0.0f);
  for (size_t k = 0; k < job.inner; k += kStep) {
    read<kBlock, kStep>(m.a, a + k, job.inner, rows, job.inner - k);
    if constexpr (kTransposed)
      read<kBlock, kStep>(m.weight, weight + k, job.inner, columns, job.inner - k);
    else
      read<kStep, kBlock>(m.weight, weight + k * job.columns, job.columns, job.inner - k, columns);
    read_factor<kStep>(m.p, job.p + (adapter * job.inner + k) * job.rank, job.inner - k, job.rank);
    __syncthreads();
    for (int i = 0; i < kStep / kTile; ++i) {
      wmma::load_matrix_sync(left, cuda::tile(m.a, kA, false, warp, i), kA);
      for (int j = 0; j < kBlock / kTile; ++j) {
        wmma::load_matrix_sync(right, cuda::tile(m.weight, kW, kTransposed, i, j), kW);
        wmma::mma_sync(sums[j], left, right, sums[j]);
      }
      cuda::Right<false> factor;
      wmma::load_matrix_sync(factor, cuda::tile(m.p, kFactor, false, i, 0), kFactor);
      wmma::mma_sync(projected, left, factor, projected);
    }
    __syncthreads();
  }
  read_factor<kBlock>(m.q, job.q + (adapter * job.columns + column) * job.rank, columns, job.rank);
  wmma::store_matrix_sync(cuda::tile(m.t, Tiles::kT, false, warp, 0), projected, Tiles::kT, wmma::mem_row_major);
  __syncthreads();
  for (int i = threadIdx.x; i < kBlock * kTile; i += blockDim.x) {
    const size_t r = i / kTile;
    const int k = i % kTile;
    const float t = m.t[r * Tiles::kT + k], s = k < job.rank ? job.s[adapter * job.rank + k] : 0.0f;
    m.scaled[r * kFactor + k] = cuda::rounded<Half>(job.scale * s * t);
    if (column == 0 && r < rows && k < job.padded) job.t[(adapter * job.n + row + r) * job.padded + k] = t;
  }
  __syncthreads();
  wmma::load_matrix_sync(left, cuda::tile(m.scaled, kFactor, false, warp, 0), kFactor);
  for (int j = 0; j < kBlock / kTile; ++j) {
    cuda::Right<true> factor;
    wmma::load_matrix_sync(factor, cuda::tile(m.q, kFactor, true, 0, j), kFactor);
    wmma::mma_sync(sums[j], left, factor, sums[j]);
    wmma::store_matrix_sync(cuda::tile(m.out, Tiles::kOut, false, warp, j), sums[j], Tiles::kOut, wmma::mem_row_major);
  }
  __syncwarp();
  for (int i = lane; i < kTile * kBlock; i += kWarp) {  // the warp's own rows
    const size_t r = warp * kTile + i / kBlock, j = i % kBlock;
    if (r >= rows || j >= columns) continue;
    const float bias = job.bias ? cuda::value(static_cast<const Half*>(job.bias)[column + j]) : 0.0f;
    static_cast<Half*>(job.c)[(adapter * job.n + row + r) * job.columns + column + j] =
        cuda::rounded<Half>(m.out[r * Tiles::kOut + j] + bias);
  }
}

constexpr int kColumns = 128, kRanks = 4;  // of a block that sums over rows

// partial (batch, chunks, padded, width) = a^T t over each chunk of rows: a (batch, n, width). A thread has a column
// and four ranks; blockIdx: columns, chunk, adapter and four.
template <class T>
__global__ void __launch_bounds__(kColumns)
    sum_products(const T* a, const float* t, size_t n, size_t width, int padded, float* partial) {
  __shared__ float chunk[kLowRankChunk][kRanks];
  const int fours = padded / kRanks, first = blockIdx.z % fours * kRanks;
  const size_t adapter = blockIdx.z / fours, column = static_cast<size_t>(blockIdx.x) * kColumns + threadIdx.x;
  const size_t row = static_cast<size_t>(blockIdx.y) * kLowRankChunk;
  const int rows = static_cast<int>(min(kLowRankChunk, n - row));
  for (int i = threadIdx.x; i < rows * kRanks; i += kColumns)
    chunk[i / kRanks][i % kRanks] = t[(adapter * n + row + i / kRanks) * padded + first + i % kRanks];
  __syncthreads();
  if (column >= width) return;
  float sums[kRanks] = {};
  const T* const start = a + (adapter * n + row) * width + column;
  LORA_COMP_UNROLL
  for (int r = 0; r < rows; ++r) {
    const float x = cuda::value(start[r * width]);
    for (int k = 0; k < kRanks; ++k) sums[k] += x * chunk[r][k];
  }
  for (int k = 0; k < kRanks; ++k)
    partial[((adapter * gridDim.y + blockIdx.y) * padded + first + k) * width + column] = sums[k];
}

// to (batch, width, rank) = scale s * the sum of the chunks' partial sums. blockIdx: columns, rank, adapter.
__global__ void __launch_bounds__(kColumns) finish(const float* partial, const float* s, float scale, size_t chunks,
                                                   size_t width, int rank, int padded, float* to) {
  const size_t column = static_cast<size_t>(blockIdx.x) * kColumns + threadIdx.x, adapter = blockIdx.z;
  const int k = blockIdx.y;
  if (column >= width) return;
  float sum = 0;
  for (size_t chunk = 0; chunk < chunks; ++chunk)
    sum += partial[((adapter * chunks + chunk) * padded + k) * width + column];
  to[(adapter * width + column) * rank + k] = scale * s[adapter * rank + k] * sum;
}

constexpr int kSummed = 256;  // threads of a block that sums a column

// to (batch, rank) = scale * the sum over the rows of t * grad_t. blockIdx: rank, adapter.
__global__ void __launch_bounds__(kSummed)
    sum_rows(const float* t, const float* grad_t, float scale, size_t n, int rank, int padded, float* to) {
  __shared__ float sums[kSummed / kWarp];
  const size_t adapter = blockIdx.y;
  const int k = blockIdx.x;
  float sum = 0;
  for (size_t row = threadIdx.x; row < n; row += kSummed) {
    const size_t at = (adapter * n + row) * padded + k;
    sum += t[at] * grad_t[at];
  }
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kSummed / kWarp; ++warp) sum += sums[warp];
  to[adapter * rank + k] = scale * sum;
}

void run(const char* name, const Job& job, bool transposed, bool bfloat16, uintptr_t stream) {
  const auto batch = static_cast<unsigned>(job.batch);
  if (job.weight) {
    const dim3 grid(cuda::blocks(job.n, kBlock), cuda::blocks(job.columns, kBlock), batch);
    cuda::launch(name, transposed ? multiply<true> : multiply<false>, grid, kWarps * kWarp, sizeof(Tiles), stream, job);
  } else {
    const dim3 grid(cuda::blocks(job.n, kRows), batch);
    cuda::launch(name, bfloat16 ? update<Half> : update<float>, grid, kRows * kWarp, 0, stream, job);
  }
}

template <class T>
void sum(const char* name, const void* a, const float* t, const LowRankLinear& l, size_t width, float* space, float* to,
         uintptr_t stream) {
  const int rank = static_cast<int>(l.rank), padded = static_cast<int>(low_rank_padded(l.rank));
  const unsigned across = cuda::blocks(width, kColumns), chunks = cuda::blocks(l.n, kLowRankChunk);
  const auto batch = static_cast<unsigned>(l.batch);
  cuda::launch(name, sum_products<T>, dim3(across, chunks, batch * padded / kRanks), kColumns, 0, stream,
               static_cast<const T*>(a), t, l.n, width, padded, space);
  cuda::launch(name, finish, dim3(across, rank, batch), kColumns, 0, stream, space, l.s, l.scale, chunks, width, rank,
               padded, to);
}

void check(const LowRankLinear& a) {
  if (a.weight && (!a.bfloat16 || a.rank > kTile))
    throw std::invalid_argument("on a GPU the kernel multiplies by a weight of bfloat16, up to a rank of 16");
}

}  // namespace

void low_rank_linear_forward_cuda(const LowRankLinear& a, void* y, float* t, uintptr_t stream) {
  check(a);
  const Job job{a.x,
                a.weight,
                a.bias,
                a.v,
                a.u,
                a.s,
                a.scale,
                a.batch,
                a.n,
                a.in,
                a.out,
                static_cast<int>(a.rank),
                static_cast<int>(low_rank_padded(a.rank)),
                t,
                y};
  run("low_rank_linear_forward", job, true, a.bfloat16, stream);
}

void low_rank_linear_backward_cuda(const LowRankLinear& a, const void* grad_y, const float* t, float* space,
                                   const LowRankGradients& grads, uintptr_t stream) {
  check(a);
  constexpr const char* kName = "low_rank_linear_backward";
  float *const grad_t = space, *const partial = space + a.batch * a.n * low_rank_padded(a.rank);
  Job job{grad_y,
          a.weight,
          nullptr,
          a.u,
          a.v,
          a.s,
          a.scale,
          a.batch,
          a.n,
          a.out,
          a.in,
          static_cast<int>(a.rank),
          static_cast<int>(low_rank_padded(a.rank)),
          grad_t,
          grads.x};
  if (!grads.x) job.weight = nullptr;  // the projection alone
  run(kName, job, false, a.bfloat16, stream);
  const auto sum_over_rows = a.bfloat16 ? sum<Half> : sum<float>;
  if (grads.u) sum_over_rows(kName, grad_y, t, a, a.out, partial, grads.u, stream);
  if (grads.v) sum_over_rows(kName, a.x, grad_t, a, a.in, partial, grads.v, stream);
  if (grads.s)
    cuda::launch(kName, sum_rows, dim3(job.rank, static_cast<unsigned>(a.batch)), kSummed, 0, stream, t, grad_t,
                 a.scale, a.n, job.rank, job.padded, grads.s);
}

}  // namespace lora_comp
