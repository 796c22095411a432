// What the kernels of the instruction sets have in common.
#pragma once

#include "block.hpp"

namespace lora_comp::swin {

struct Job {
  const SwinBlock& block;
  const float *x, *grad_y;  // grad_y null: forward
  float *out, *kept;        // y or grad_x; see swin_block_forward
};

void run_plain(const Job&, const SwinBlockGrad&, unsigned threads);
void run_avx2(const Job&, const SwinBlockGrad&, unsigned threads);
void run_avx512(const Job&, const SwinBlockGrad&, unsigned threads);
void run_half(const Job&, const SwinBlockGrad&, unsigned threads);  // bfloat16, on AMX

}  // namespace lora_comp::swin
