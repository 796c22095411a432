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

}  // namespace lora_comp::attention
