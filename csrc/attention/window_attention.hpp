// Self-attention in the windows of a feature map, cyclically shifted, with a relative position bias: the inner part of
// a Swin block (Liu et al., ICCV 2021), from queries, keys and values to what the projection takes, in one pass over
// the map. lora_comp/ops/window_attention.py says what it computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "../tensor.hpp"

namespace lora_comp {

struct WindowAttention {
  const void* qkv;    // (batch, height, width, 3, heads, dim), float32
  const float* bias;  // (heads, tokens, tokens): head, key, query; tokens = window * window
  size_t batch, height, width, heads, dim, window, shift;
};

// Whether the kernels know the size: windows of 4 or 8, heads of up to 32.
bool window_attention_fits(const WindowAttention&);

// out: (batch, height, width, heads, dim)
void window_attention_forward(const WindowAttention&, float* out, unsigned threads);

// grad_qkv is written; grad_bias, which may be null, is added to, in the layouts of qkv and bias.
void window_attention_backward(const WindowAttention&, const float* grad_out, float* grad_qkv, float* grad_bias,
                               unsigned threads);

// On a GPU: qkv, out and their gradients are of bfloat16 if that is said, `bias` and its gradient stay float32. They
// enqueue on the stream and return, and throw std::runtime_error with CUDA's message if a launch fails. The order in
// which grad_bias is added to is not always the same.
void window_attention_forward_cuda(const WindowAttention&, void* out, bool bfloat16, uintptr_t stream);
void window_attention_backward_cuda(const WindowAttention&, const void* grad_out, void* grad_qkv, float* grad_bias,
                                    bool bfloat16, uintptr_t stream);

// The entries: the same of tensors, whose types and shapes are compared first. Without a stream on the CPU, in float32.
struct WindowAttentionTensors {
  Tensor qkv, bias;
  size_t window, shift;
};
void window_attention_forward(const WindowAttentionTensors&, const Tensor& out, unsigned threads,
                              std::optional<uintptr_t> stream);
void window_attention_backward(const WindowAttentionTensors&, const Tensor& grad_out, const Tensor& grad_qkv,
                               const Tensor& grad_bias, unsigned threads, std::optional<uintptr_t> stream);

}  // namespace lora_comp
