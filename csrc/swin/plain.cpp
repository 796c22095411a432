#include "kernel.hpp"

namespace lora_comp::swin {

void run_plain(const Job& job, const SwinBlockGrad& grad, unsigned threads) { run_block<Full>(job, grad, threads); }

}  // namespace lora_comp::swin
