// What the kernels of the instruction sets have in common.
#pragma once

#include "gdn.hpp"

namespace lora_comp::gdn {

struct Job {
  const Gdn& layer;
  const void *x, *grad_y;         // grad_y null: forward
  void* out;                      // y or grad_x
  float *grad_beta, *grad_gamma;  // both or none
};

void run_plain(const Job&, unsigned threads);
void run_avx2(const Job&, unsigned threads);
void run_avx512(const Job&, unsigned threads);
void run_half(const Job&, unsigned threads);  // bfloat16, on AMX

}  // namespace lora_comp::gdn
