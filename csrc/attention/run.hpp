// What the kernels of the instruction sets have in common.
#pragma once

#include "window_attention.hpp"

namespace lora_comp::attention {

struct Job {
  const WindowAttention& a;
  const float* grad_out;  // null: forward
  float* out;             // of the forward pass, or grad_qkv
  float* grad_bias;
};

// All windows of a row of them, of those of all maps.
void run_plain(const Job&, size_t row);
void run_avx2(const Job&, size_t row);
void run_avx512(const Job&, size_t row);

}  // namespace lora_comp::attention
