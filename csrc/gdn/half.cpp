#define LANES 16
#include "../target.hpp"
#ifdef __x86_64__
BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "kernel.hpp"

namespace lora_comp::gdn {

void run_half(const Job& job, unsigned threads) { run<Half, uint16_t>(job, threads); }

}  // namespace lora_comp::gdn
END_TARGET
#endif
