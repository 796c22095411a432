#include <vector>

#include "svd_lora.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

namespace lora_comp {
namespace {

// v: (in, kMaxRank), u: (rank, out). Both are laid out so that the inner loops vectorise without reordering sums.
CLONES void update_rows(const LowRankUpdate& a, const float* v, const float* u) {
  for (size_t row = 0; row < a.n; ++row) {
    const float* const x = a.x + static_cast<ptrdiff_t>(row) * a.x_stride;
    float* const y = a.y + static_cast<ptrdiff_t>(row) * a.y_stride;
    float t[kMaxRank] = {};
    for (size_t i = 0; i < a.in; ++i)
      for (int k = 0; k < kMaxRank; ++k) t[k] += x[i] * v[i * kMaxRank + k];
    for (int k = 0; k < a.rank; ++k) {
      const float* const column = u + k * a.out;
      for (size_t o = 0; o < a.out; ++o) y[o] += t[k] * column[o];
    }
  }
}

}  // namespace

void low_rank_update_cpu(const LowRankUpdate& a) {
  std::vector<float> v(a.in * kMaxRank), u(a.rank * a.out);
  for (size_t i = 0; i < a.in; ++i)
    for (int k = 0; k < a.rank; ++k) v[i * kMaxRank + k] = a.v[i * a.rank + k];
  for (int k = 0; k < a.rank; ++k)
    for (size_t o = 0; o < a.out; ++o) u[k * a.out + o] = a.scale * a.s[k] * a.u[o * a.rank + k];
  update_rows(a, v.data(), u.data());
}

}  // namespace lora_comp
