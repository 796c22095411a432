#include "gdn.hpp"

#include <stdexcept>

#include "../processor.hpp"
#include "../swin/tiles.hpp"
#include "run.hpp"

namespace lora_comp {
namespace gdn {
namespace {

auto fastest([[maybe_unused]] bool bfloat16) {
#ifdef __x86_64__
  if (bfloat16 && swin::tiles_available()) return run_half;
  if (has_avx512()) return run_avx512;
  if (has_avx2()) return run_avx2;
#endif
  return run_plain;
}

void run_any(const Job& job, unsigned threads) {
  if (job.layer.channels % 32 != 0) throw std::invalid_argument("channels in multiples of 32");
  fastest(job.layer.bfloat16)(job, threads);
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
