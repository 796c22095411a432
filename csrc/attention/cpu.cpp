#include <algorithm>
#include <stdexcept>
#include <vector>

#include "../parallel.hpp"
#include "../processor.hpp"
#include "run.hpp"
#include "window.hpp"

namespace lora_comp {
namespace attention {
namespace {

auto fastest() {
#ifdef __x86_64__
  if (has_avx512()) return run_avx512;
  if (has_avx2()) return run_avx2;
#endif
  return run_plain;
}

}  // namespace
}  // namespace attention

namespace {

size_t window_rows(const WindowAttention& a) { return a.batch * Windows{a.height, a.width, a.window, a.shift}.rows(); }

void check(const WindowAttention& a) {
  if (!window_attention_fits(a)) throw std::invalid_argument("windows of 4 or 8 and heads of up to 32, no others");
}

}  // namespace

bool window_attention_fits(const WindowAttention& a) {
  return (a.window == 4 || a.window == 8) && a.dim >= 1 && a.dim <= 32 && a.shift < a.window;
}

void window_attention_forward(const WindowAttention& a, float* out, unsigned threads) {
  check(a);
  const auto run = attention::fastest();
  parallel(window_rows(a), threads, [&](size_t row) { run({a, nullptr, out, nullptr}, row); });
}

void window_attention_backward(const WindowAttention& a, const float* grad_out, float* grad_qkv, float* grad_bias,
                               unsigned threads) {
  check(a);
  const auto run = attention::fastest();
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
