// y += scale * ((x V) * s) U^T, row by row and in place: what SVD-LoRA adds to a linear layer. All float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lora_comp {

constexpr int kMaxRank = 16;

struct LowRankUpdate {
  float* y;              // (n, out), rows y_stride apart
  const float* x;        // (n, in), rows x_stride apart
  const float* u;        // (out, rank), contiguous
  const float* s;        // (rank,)
  const float* v;        // (in, rank), contiguous
  ptrdiff_t y_stride, x_stride;
  size_t n, in, out;
  int rank;              // 1 to kMaxRank
  float scale;
};

void low_rank_update_cpu(const LowRankUpdate& a);

// Enqueues on the stream and returns; throws std::runtime_error with CUDA's message if the launch fails.
void low_rank_update_cuda(const LowRankUpdate& a, uintptr_t stream);

}  // namespace lora_comp
