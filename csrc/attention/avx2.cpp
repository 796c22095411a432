#define LANES 8
#include "../target.hpp"
#ifdef __x86_64__
BEGIN_TARGET("avx2,fma")
#include "kernel.hpp"

namespace lora_comp::attention {

void run_avx2(const Job& job, size_t row) { run_any(job, row); }

}  // namespace lora_comp::attention
END_TARGET
#endif
