// In place of the kernels for a GPU, in a build without CUDA.
#include <stdexcept>

#include "../attention/window_attention.hpp"
#include "../svd_lora/svd_lora.hpp"

namespace lora_comp {
namespace {

[[noreturn]] void refuse() {
  throw std::runtime_error("lora_comp was built without CUDA: reinstall it with nvcc on PATH");
}

}  // namespace

void window_attention_forward_cuda(const WindowAttention&, void*, bool, uintptr_t) { refuse(); }
void window_attention_backward_cuda(const WindowAttention&, const void*, void*, float*, bool, uintptr_t) { refuse(); }
void low_rank_linear_forward_cuda(const LowRankLinear&, void*, float*, uintptr_t) { refuse(); }
void low_rank_linear_backward_cuda(const LowRankLinear&, const void*, const float*, float*, const LowRankGradients&,
                                   uintptr_t) {
  refuse();
}

}  // namespace lora_comp
