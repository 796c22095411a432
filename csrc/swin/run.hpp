// What the kernels of the instruction sets have in common.
#pragma once

#include "block.hpp"

namespace lora_comp::swin {

struct Job {
  const SwinBlock& block;
  const float *x, *grad_y;  // grad_y null: forward
  float *out, *kept;        // y or grad_x; see swin_block_forward
};

}  // namespace lora_comp::swin
