#define LANES 16
#include "../target.hpp"
#ifdef __x86_64__
BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "kernel.hpp"

namespace lora_comp::swin {

void run_avx512(const Job& job, const SwinBlockGrad& grad, unsigned threads) { run_block<Full>(job, grad, threads); }

}  // namespace lora_comp::swin
END_TARGET
#endif
