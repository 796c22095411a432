// Self-attention in the windows of a feature map, cyclically shifted, with a relative position bias: the inner part of a
// Swin block (Liu et al., ICCV 2021), from queries, keys and values to what the projection takes, in one pass over the
// map. lora_comp/ops/window_attention.py says what it computes.
#pragma once

#include <cstddef>

namespace lora_comp {

struct WindowAttention {
  const float* qkv;   // (batch, height, width, 3, heads, dim)
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

}  // namespace lora_comp
