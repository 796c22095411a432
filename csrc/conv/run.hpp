// What the kernels of the instruction sets have in common.
#pragma once

#include "conv.hpp"

namespace lora_comp::conv {

struct Job {
  const Conv3x3& layer;
  const float *x, *more;
  float* y;
};

}  // namespace lora_comp::conv
