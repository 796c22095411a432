#define LANES 8
#include "../target.hpp"
#ifdef __x86_64__
BEGIN_TARGET("avx2,fma")
#include "kernel.hpp"

namespace lora_comp::swin {

void run_avx2(const Job& job, const SwinBlockGrad& grad, unsigned threads) { run_block<Full>(job, grad, threads); }

}  // namespace lora_comp::swin
END_TARGET
#endif
