// Window attention on the CPU, compiled for each instruction set.
#undef SIMD_FILE
#define SIMD_FILE "attention/cpu.cpp"
#include "../simd/foreach_target.hpp"

#include "kernel.hpp"

SIMD_BEGIN
namespace lora_comp::attention::SIMD_TARGET {

// All windows of a row of them, of those of all maps.
void run(const Job& job, size_t row) { run_any(job, row); }

}  // namespace lora_comp::attention::SIMD_TARGET
SIMD_END

#ifdef SIMD_ONCE
#include <algorithm>
#include <vector>

#include "../parallel.hpp"

namespace lora_comp::attention {
namespace {

auto best() { return SIMD_BEST(run); }

}  // namespace
}  // namespace lora_comp::attention

namespace lora_comp {
namespace {

size_t window_rows(const WindowAttention& a) { return a.batch * Windows{a.height, a.width, a.window, a.shift}.rows(); }

void check(const WindowAttention& a) {
  demand(window_attention_fits(a), "windows of 4 or 8 and heads of up to 32, no others");
}

}  // namespace

bool window_attention_fits(const WindowAttention& a) {
  return (a.window == 4 || a.window == 8) && a.dim >= 1 && a.dim <= 32 && a.shift < a.window;
}

void window_attention_forward(const WindowAttention& a, float* out, unsigned threads) {
  check(a);
  const auto run = attention::best();
  parallel(window_rows(a), threads, [&](size_t row) { run({a, nullptr, out, nullptr}, row); });
}

void window_attention_backward(const WindowAttention& a, const float* grad_out, float* grad_qkv, float* grad_bias,
                               unsigned threads) {
  check(a);
  const auto run = attention::best();
  if (!grad_bias) {
    parallel(window_rows(a), threads, [&](size_t row) { run({a, grad_out, grad_qkv, nullptr}, row); });
    return;
  }
  // A sum for each share of the rows, added up in order: the same bits whatever the threads.
  const size_t size = a.heads * a.window * a.window * a.window * a.window;
  const size_t rows = window_rows(a), shares = std::min<size_t>(rows, 16);
  std::vector<std::vector<float>> sums(shares, std::vector<float>(size));
  parallel(shares, threads, [&](size_t share) {
    for (size_t row = rows * share / shares; row < rows * (share + 1) / shares; ++row)
      run({a, grad_out, grad_qkv, sums[share].data()}, row);
  });
  for (const std::vector<float>& sum : sums)
    for (size_t i = 0; i < size; ++i) grad_bias[i] += sum[i];
}

}  // namespace lora_comp
#endif
