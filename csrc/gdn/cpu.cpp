// Divisive normalisation on the CPU, compiled for each instruction set.
#undef SIMD_FILE
#define SIMD_FILE "gdn/cpu.cpp"
#include "../simd/foreach_target.hpp"

#include "kernel.hpp"

SIMD_BEGIN
namespace lora_comp::gdn::SIMD_TARGET {

void run(const Job& job, unsigned threads) {
  job.layer.bfloat16 ? run_all<Float32, uint16_t>(job, threads) : run_all<Float32, float>(job, threads);
}

#if SIMD_LANES == 16  // the companion of bfloat16 products
void run_half(const Job& job, unsigned threads) { run_all<Bfloat16, uint16_t>(job, threads); }
#endif

}  // namespace lora_comp::gdn::SIMD_TARGET
SIMD_END

#ifdef SIMD_ONCE
#include "../simd/half.hpp"

namespace lora_comp {
namespace gdn {
namespace {

void run_any(const Job& job, unsigned threads) {
  demand(job.layer.channels % 32 == 0, "channels in multiples of 32");
#ifdef __x86_64__
  if (job.layer.bfloat16 && simd::half_available()) return avx512::run_half(job, threads);
#endif
  SIMD_BEST(run)(job, threads);
}

}  // namespace
}  // namespace gdn

void gdn_forward(const Gdn& layer, const void* x, void* y, unsigned threads) {
  gdn::run_any({layer, x, nullptr, y, nullptr, nullptr}, threads);
}

void gdn_backward(const Gdn& layer, const void* x, const void* grad_y, void* grad_x, float* grad_beta,
                  float* grad_gamma, unsigned threads) {
  gdn::run_any({layer, x, grad_y, grad_x, grad_beta, grad_gamma}, threads);
}

}  // namespace lora_comp
#endif
