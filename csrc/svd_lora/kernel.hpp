// A layer's own product and its low-rank update in one pass: a few rows at a time are projected on V while they come
// into the first cache, and U's columns are but a few more steps of the sum that makes y. The gradient of x is the same
// product with the two factors exchanged.
#if defined(LORA_COMP_SVD_LORA_KERNEL) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SVD_LORA_KERNEL
#undef LORA_COMP_SVD_LORA_KERNEL
#else
#define LORA_COMP_SVD_LORA_KERNEL
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../parallel.hpp"
#include "../simd/bf16.hpp"
#include "product.hpp"
#include "run.hpp"

SIMD_BEGIN
namespace lora_comp::svd_lora::SIMD_TARGET {
namespace {

// A matrix as float32, a group of rows at a time: its own memory, or a copy.
struct Rows {
  char* start;
  size_t width;
  bool copied;
  std::vector<float> copy;

  Rows(const void* start, size_t width, bool copied)
      : start(static_cast<char*>(const_cast<void*>(start))),
        width(width),
        copied(copied),
        copy(start && copied ? kGroup * width : 0) {}

  float* read(size_t row, size_t count) {
    if (!start) return nullptr;
    if (!copied) return reinterpret_cast<float*>(start) + row * width;
    widen(reinterpret_cast<const uint16_t*>(start) + row * width, count * width, copy.data());
    return copy.data();
  }

  void write(size_t row, size_t count) {
    if (start && copied) narrow(copy.data(), count * width, reinterpret_cast<uint16_t*>(start) + row * width);
  }
};

inline void run_share(const Job& job, const Packed& packed, size_t item) {
  const LowRankLinear& a = job.a;
  const size_t groups = (a.n + kGroup - 1) / kGroup, rank = low_rank_padded(a.rank);
  const size_t adapter = item / shares(a), share = item % shares(a);
  const size_t start = adapter * a.n, last = std::min(a.n, groups * (share + 1) / shares(a) * kGroup);
  const Product product = packed.of(adapter);
  const bool backward = job.grad_y;
  Rows x(a.x, a.in, a.bfloat16), y(backward ? job.grad_y : job.y, a.out, a.bfloat16);
  Rows grad_x(job.grad_x, a.in, a.bfloat16);
  std::vector<float> grad_t(kGroup * rank);
  for (size_t row = groups * share / shares(a) * kGroup; row < last; row += kGroup) {
    const size_t count = std::min(kGroup, last - row);
    const bool more = !a.bfloat16 && row + count < last;
    const float* const x_rows = x.read(start + row, count);
    float* const y_rows = y.read(start + row, count);
    float* const t = job.projected + (start + row) * rank;
    if (!backward) {
      apply(product, x_rows, count, t, y_rows, more ? x_rows + count * a.in : nullptr, nullptr);
      y.write(start + row, count);
      continue;
    }
    apply(product, y_rows, count, grad_t.data(), grad_x.read(start + row, count),
          more ? y_rows + count * a.out : nullptr, x_rows);
    grad_x.write(start + row, count);
    ShareSums& sums = (*job.sums)[item];
    if (!sums.u.empty()) add_products(y_rows, t, count, a.out, rank, sums.u.data());
    if (!sums.v.empty()) add_products(x_rows, grad_t.data(), count, a.in, rank, sums.v.data());
    for (size_t four = 0; four < sums.s.size(); four += 4) {
      float sum[4] = {};
      for (size_t k = four; k < count * rank; k += rank)
        for (size_t i = 0; i < 4; ++i) sum[i] += t[k + i] * grad_t[k + i];
      for (size_t i = 0; i < 4; ++i) sums.s[four + i] += sum[i];
    }
  }
}

inline void run_all(const Job& job, unsigned threads) {
  const bool backward = job.grad_y;
  const Packed packed(job.a, backward);
  pack(job.a, backward, packed);
  parallel(job.a.batch * shares(job.a), threads, [&](size_t share) { run_share(job, packed, share); });
}

}  // namespace
}  // namespace lora_comp::svd_lora::SIMD_TARGET
SIMD_END
#endif
