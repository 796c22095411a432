// The convolution on the CPU, compiled for each instruction set.
#undef SIMD_FILE
#define SIMD_FILE "conv/cpu.cpp"
#include "../simd/foreach_target.hpp"

#include "kernel.hpp"

SIMD_BEGIN
namespace lora_comp::conv::SIMD_TARGET {

void run(const Job& job, unsigned threads) { run_all(job, threads); }

}  // namespace lora_comp::conv::SIMD_TARGET
SIMD_END

#ifdef SIMD_ONCE

namespace lora_comp::conv {
namespace {

auto best() { return SIMD_BEST(run); }

}  // namespace
}  // namespace lora_comp::conv

namespace lora_comp {

void conv3x3(const Conv3x3& layer, const float* x, const float* more, float* y, unsigned threads) {
  demand(layer.in % 16 == 0 && layer.more % 16 == 0 && layer.out % 16 == 0, "channels in multiples of 16");
  conv::best()({layer, x, more, y}, threads);
}

}  // namespace lora_comp
#endif
