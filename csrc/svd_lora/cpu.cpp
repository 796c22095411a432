// A low-rank linear layer on the CPU, compiled for each instruction set.
#undef SIMD_FILE
#define SIMD_FILE "svd_lora/cpu.cpp"
#include "../simd/foreach_target.hpp"

#include "kernel.hpp"

SIMD_BEGIN
namespace lora_comp::svd_lora::SIMD_TARGET {

void run(const Job& job, unsigned threads) { run_all(job, threads); }

}  // namespace lora_comp::svd_lora::SIMD_TARGET
SIMD_END

#ifdef SIMD_ONCE
namespace lora_comp {
namespace svd_lora {
namespace {

// to (width, rank) = sums (padded rank, width) of all shares, in order, each times scale * s
void finish(const LowRankLinear& a, const std::vector<ShareSums>& sums, std::vector<float> ShareSums::* which,
            size_t width, bool times_s, float* to) {
  for (size_t adapter = 0; to && adapter < a.batch; ++adapter, to += width * a.rank) {
    std::vector<float> total(low_rank_padded(a.rank) * width);
    for (size_t share = adapter * shares(a); share < (adapter + 1) * shares(a); ++share)
      for (size_t i = 0; i < total.size(); ++i) total[i] += (sums[share].*which)[i];
    for (size_t k = 0; k < a.rank; ++k) {
      const float factor = times_s ? a.scale * a.s[adapter * a.rank + k] : a.scale;
      for (size_t i = 0; i < width; ++i) to[i * a.rank + k] = factor * total[k * width + i];
    }
  }
}

}  // namespace

void run_best(const Job& job, unsigned threads) { SIMD_BEST(run)(job, threads); }

}  // namespace svd_lora

void low_rank_linear_forward(const LowRankLinear& a, void* y, float* t, unsigned threads) {
  svd_lora::run_best({a, y, t, nullptr, nullptr, nullptr}, threads);
}

void low_rank_linear_backward(const LowRankLinear& a, const void* grad_y, const float* t, const LowRankGradients& grads,
                              unsigned threads) {
  using svd_lora::ShareSums;
  const size_t rank = low_rank_padded(a.rank);
  std::vector<ShareSums> sums(a.batch * svd_lora::shares(a));
  for (ShareSums& sum : sums) {
    sum.u.resize(grads.u ? rank * a.out : 0);
    sum.s.resize(grads.s ? rank : 0);
    sum.v.resize(grads.v ? rank * a.in : 0);
  }
  svd_lora::run_best({a, nullptr, const_cast<float*>(t), grad_y, grads.x, &sums}, threads);
  svd_lora::finish(a, sums, &ShareSums::u, a.out, true, grads.u);
  svd_lora::finish(a, sums, &ShareSums::s, 1, false, grads.s);
  svd_lora::finish(a, sums, &ShareSums::v, a.in, true, grads.v);
}

}  // namespace lora_comp
#endif
