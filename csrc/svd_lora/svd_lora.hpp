// A linear layer with a low-rank update, y = x W^T + scale ((x V) * s) U^T + b, and its gradients but those of W and b.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "../tensor.hpp"

namespace lora_comp {

// Matrices are contiguous, row by row; x, y and their gradients are all float32 or all bfloat16, the rest is float32.
struct LowRankLinear {
  const void* x;           // (batch, n, in)
  const void* weight;      // (out, in), of x's type; null: what is to be written holds its product already. The CPU
                           // multiplies by it in float32 alone, a GPU in bfloat16 and up to a rank of 16
  const void* bias;        // (out,) or null; goes with the weight
  const float *u, *s, *v;  // (batch, out, rank), (batch, rank), (batch, in, rank)
  size_t batch, n, in, out, rank;
  float scale;
  bool bfloat16;
};

// Null where not wanted.
struct LowRankGradients {
  void* x;  // (batch, n, in)
  float *u, *s, *v;
};

// A row of projections x V, kept for the backward pass, takes a whole number of fours; zero beyond the rank.
constexpr size_t low_rank_padded(size_t rank) { return (rank + 3) / 4 * 4; }

constexpr size_t kLowRankChunk = 256;  // rows that a GPU sums at once

// Numbers of float32 that a GPU's backward pass needs for itself.
constexpr size_t low_rank_space(size_t batch, size_t n, size_t in, size_t out, size_t rank) {
  return batch * low_rank_padded(rank) * (n + (n + kLowRankChunk - 1) / kLowRankChunk * (in > out ? in : out));
}

// Writes y (batch, n, out), or adds to it where there is no weight, and t = x V (batch, n, padded rank).
void low_rank_linear_forward(const LowRankLinear& a, void* y, float* t, unsigned threads);

// Writes the gradients; adds to that of x where there is no weight. The same bits whatever the threads.
void low_rank_linear_backward(const LowRankLinear& a, const void* grad_y, const float* t, const LowRankGradients& grads,
                              unsigned threads);

// On a GPU: no empty batch or n. They enqueue on the stream and return, and throw std::runtime_error with CUDA's
// message if a launch fails. `space` is theirs to write.
void low_rank_linear_forward_cuda(const LowRankLinear& a, void* y, float* t, uintptr_t stream);
void low_rank_linear_backward_cuda(const LowRankLinear& a, const void* grad_y, const float* t, float* space,
                                   const LowRankGradients& grads, uintptr_t stream);

// The entries: the same of tensors, whose types and shapes are compared first. x (..., in) or, with an adapter for each
// of the first dimension, (batch, ..., in); weight and bias may be left out, and the gradients. Without a stream on the
// CPU.
struct LowRankTensors {
  Tensor x, weight, bias, u, s, v;
  float scale;
};
void low_rank_linear_forward(const LowRankTensors&, const Tensor& y, const Tensor& t, unsigned threads,
                             std::optional<uintptr_t> stream);

struct LowRankGradientTensors {
  Tensor x, u, s, v;
};
void low_rank_linear_backward(const LowRankTensors&, const Tensor& grad_y, const Tensor& t, const Tensor& space,
                              const LowRankGradientTensors& grads, unsigned threads, std::optional<uintptr_t> stream);

}  // namespace lora_comp
