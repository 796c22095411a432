#include "kernel.hpp"

namespace lora_comp::gdn {

void run_plain(const Job& job, unsigned threads) {
  job.layer.bfloat16 ? run<Full, uint16_t>(job, threads) : run<Full, float>(job, threads);
}

}  // namespace lora_comp::gdn
