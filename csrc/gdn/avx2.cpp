#define LANES 8
#include "../target.hpp"
#ifdef __x86_64__
BEGIN_TARGET("avx2,fma")
#include "kernel.hpp"

namespace lora_comp::gdn {

void run_avx2(const Job& job, unsigned threads) {
  job.layer.bfloat16 ? run<Full, uint16_t>(job, threads) : run<Full, float>(job, threads);
}

}  // namespace lora_comp::gdn
END_TARGET
#endif
