#define LANES 16
#include "../target.hpp"
#ifdef __x86_64__
BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "kernel.hpp"

namespace lora_comp::gdn {

void run_avx512(const Job& job, unsigned threads) {
  job.layer.bfloat16 ? run<Full, uint16_t>(job, threads) : run<Full, float>(job, threads);
}

}  // namespace lora_comp::gdn
END_TARGET
#endif
