#include "kernel.hpp"

namespace lora_comp::attention {

void run_plain(const Job& job, size_t row) { run_any(job, row); }

}  // namespace lora_comp::attention
