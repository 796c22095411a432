// A Swin block on the CPU, compiled for each instruction set.
#undef SIMD_FILE
#define SIMD_FILE "swin/cpu.cpp"
#include "../simd/foreach_target.hpp"

#include "kernel.hpp"

SIMD_BEGIN
namespace lora_comp::swin::SIMD_TARGET {

void run(const Job& job, const SwinBlockGrad& grad, unsigned threads) { run_block<Float32>(job, grad, threads); }

#if SIMD_LANES == 16  // the companion of bfloat16 products
void run_half(const Job& job, const SwinBlockGrad& grad, unsigned threads) { run_block<Bfloat16>(job, grad, threads); }
#endif

}  // namespace lora_comp::swin::SIMD_TARGET
SIMD_END

#ifdef SIMD_ONCE
#include "../simd/half.hpp"

namespace lora_comp {
namespace swin {
namespace {

constexpr size_t kMostHead = 16, kMostRank = 256;

void check(const SwinBlock& a, bool half) {
  demand(a.windows.window == 8 && a.windows.shift < 8, "windows of 8, shifted by less");
  demand(a.dim % 32 == 0 && a.fc1.out % 32 == 0, "channels in multiples of 32");
  demand(a.heads > 0 && a.heads % 2 == 0 && a.dim % a.heads == 0 && a.dim / a.heads <= kMostHead,
         "an even number of heads of up to 16 channels");
  const SwinPrompts& prompts = a.prompts;
  for (const SwinLayer* layer : {&a.qkv, &a.proj, &a.fc1, &a.fc2}) {
    demand(layer->rank <= kMostRank, "ranks of up to 256");
    demand(!prompts.x || layer->rank == 0, "no low-rank updates with prompts");
  }
  demand(prompts.count <= kMostPrompts && (prompts.count > 0 || !prompts.x), "1 to 64 prompts in a window");
  demand(!prompts.published || (prompts.spacing == 2 && a.windows.height % 8 == 0 && a.windows.width % 8 == 0),
         "the published mask with prompts for 2x2 tokens of whole windows alone");
  demand(!half || simd::half_available(), "this machine does not multiply in bfloat16");
}

void run_any(const Job& job, const SwinBlockGrad& grad, bool half, unsigned threads) {
  check(job.block, half);
#ifdef __x86_64__
  if (half) return avx512::run_half(job, grad, threads);
#endif
  SIMD_BEST(run)(job, grad, threads);
}

}  // namespace
}  // namespace swin

bool swin_block_half_available() { return simd::half_available(); }

void swin_block_forward(const SwinBlock& a, const float* x, float* y, float* kept, bool half, unsigned threads) {
  swin::run_any({a, x, nullptr, y, kept}, {}, half, threads);
}

void swin_block_backward(const SwinBlock& a, const float* x, const float* grad_y, float* grad_x, float* kept,
                         const SwinBlockGrad& grad, bool half, unsigned threads) {
  demand(!a.prompts.x || !grad.dense(), "no gradients of the block's own parameters with prompts");
  swin::run_any({a, x, grad_y, grad_x, kept}, grad, half, threads);
}

}  // namespace lora_comp
#endif
