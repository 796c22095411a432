// What the kernels of the instruction sets have in common.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "svd_lora.hpp"

namespace lora_comp::svd_lora {

// Sums over the rows of a share, to be multiplied by scale * s: each (padded rank, ...).
struct ShareSums {
  std::vector<float> u, s, v;
};

struct Job {
  const LowRankLinear& a;
  void* y;             // forward: written
  float* projected;    // t; written by the forward pass
  const void* grad_y;  // null: forward
  void* grad_x;
  std::vector<ShareSums>* sums;  // one a share; those with a size are summed
};

constexpr size_t kShare = 256;  // rows, at least, that are worth a thread

// Of an adapter's rows.
inline size_t shares(const LowRankLinear& a) { return std::min<size_t>((a.n + kShare - 1) / kShare, 16); }

}  // namespace lora_comp::svd_lora
