#define LANES 16
#include "../target.hpp"
#ifdef __x86_64__
BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "kernel.hpp"

namespace lora_comp::attention {

void run_avx512(const Job& job, size_t row) { run_any(job, row); }

}  // namespace lora_comp::attention
END_TARGET
#endif
