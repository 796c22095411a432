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

}  // namespace lora_comp::gdn
