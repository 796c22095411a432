// A layer's own product and its low-rank update in one pass: a few rows at a time are projected on V while they come
// into the first cache, and U's columns are but a few more steps of the sum that makes y. The gradient of x is the same
// product with the two factors exchanged.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../parallel.hpp"
#include "../processor.hpp"
#include "product.hpp"

namespace lora_comp {
namespace {

constexpr size_t kShare = 256;  // rows, at least, that are worth a thread

INLINE void widen(const uint16_t* from, size_t count, float* to) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

// To the nearest, to even in the middle.
INLINE void narrow(const float* from, size_t count, uint16_t* to) {
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    to[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
}

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

  INLINE float* read(size_t row, size_t count) {
    if (!start) return nullptr;
    if (!copied) return reinterpret_cast<float*>(start) + row * width;
    widen(reinterpret_cast<const uint16_t*>(start) + row * width, count * width, copy.data());
    return copy.data();
  }

  INLINE void write(size_t row, size_t count) {
    if (start && copied) narrow(copy.data(), count * width, reinterpret_cast<uint16_t*>(start) + row * width);
  }
};

// Sums over the rows of a share, to be multiplied by scale * s: each (padded rank, ...).
struct Sums {
  std::vector<float> u, s, v;
};

struct Job {
  const LowRankLinear& a;
  const Packed& packed;
  size_t shares;       // of an adapter's rows
  void* y;             // forward: written
  float* projected;    // t; written by the forward pass
  const void* grad_y;  // null: forward
  void* grad_x;
  std::vector<Sums>* sums;  // one a share; those with a size are summed
};

template <class Fit>
INLINE void run_share(const Job& job, size_t item) {
  const LowRankLinear& a = job.a;
  const size_t groups = (a.n + kGroup - 1) / kGroup, rank = low_rank_padded(a.rank);
  const size_t adapter = item / job.shares, share = item % job.shares;
  const size_t start = adapter * a.n, last = std::min(a.n, groups * (share + 1) / job.shares * kGroup);
  const Product product = job.packed.of(adapter);
  const bool backward = job.grad_y;
  Rows x(a.x, a.in, a.bfloat16), y(backward ? job.grad_y : job.y, a.out, a.bfloat16);
  Rows grad_x(job.grad_x, a.in, a.bfloat16);
  std::vector<float> grad_t(kGroup * rank);
  for (size_t row = groups * share / job.shares * kGroup; row < last; row += kGroup) {
    const size_t count = std::min(kGroup, last - row);
    const bool more = !a.bfloat16 && row + count < last;
    const float* const x_rows = x.read(start + row, count);
    float* const y_rows = y.read(start + row, count);
    float* const t = job.projected + (start + row) * rank;
    if (!backward) {
      apply<Fit>(product, x_rows, count, t, y_rows, more ? x_rows + count * a.in : nullptr, nullptr);
      y.write(start + row, count);
      continue;
    }
    apply<Fit>(product, y_rows, count, grad_t.data(), grad_x.read(start + row, count),
               more ? y_rows + count * a.out : nullptr, x_rows);
    grad_x.write(start + row, count);
    Sums& sums = (*job.sums)[item];
    if (!sums.u.empty()) add_products<Fit>(y_rows, t, count, a.out, rank, sums.u.data());
    if (!sums.v.empty()) add_products<Fit>(x_rows, grad_t.data(), count, a.in, rank, sums.v.data());
    for (size_t four = 0; four < sums.s.size(); four += 4) {
      Narrow::Vector sum = {};
      for (size_t k = four; k < count * rank; k += rank) sum += at<Narrow>(t + k) * at<Narrow>(&grad_t[k]);
      at<Narrow>(&sums.s[four]) += sum;
    }
  }
}

struct Kernels {
  size_t panel;
  void (*pack)(const LowRankLinear& a, bool gradient, const Packed& p);
  void (*run)(const Job& job, size_t share);
};

void pack_plain(const LowRankLinear& a, bool gradient, const Packed& p) { pack<Narrow>(a, gradient, p); }
void run_plain(const Job& job, size_t share) { run_share<Narrow>(job, share); }

#ifdef __x86_64__
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#define AVX2 __attribute__((target("avx2,fma")))
AVX512 void pack_avx512(const LowRankLinear& a, bool gradient, const Packed& p) { pack<Wide>(a, gradient, p); }
AVX512 void run_avx512(const Job& job, size_t share) { run_share<Wide>(job, share); }
AVX2 void pack_avx2(const LowRankLinear& a, bool gradient, const Packed& p) { pack<Middle>(a, gradient, p); }
AVX2 void run_avx2(const Job& job, size_t share) { run_share<Middle>(job, share); }
#endif

Kernels fastest() {
#ifdef __x86_64__
  if (has_avx512()) return {Wide::kPanel, pack_avx512, run_avx512};
  if (has_avx2()) return {Middle::kPanel, pack_avx2, run_avx2};
#endif
  return {Narrow::kPanel, pack_plain, run_plain};
}

size_t shares(const LowRankLinear& a) { return std::min<size_t>((a.n + kShare - 1) / kShare, 16); }

// to (width, rank) = sums (padded rank, width) of all shares, in order, each times scale * s
void finish(const LowRankLinear& a, const std::vector<Sums>& sums, std::vector<float> Sums::* which, size_t width,
            bool times_s, float* to) {
  for (size_t adapter = 0; to && adapter < a.batch; ++adapter, to += width * a.rank) {
    std::vector<float> total(low_rank_padded(a.rank) * width);
    for (size_t share = adapter * shares(a); share < (adapter + 1) * shares(a); ++share)
      for (size_t i = 0; i < total.size(); ++i) total[i] += (sums[share].*which)[i];
    for (size_t k = 0; k < a.rank; ++k) {
      const float factor = times_s ? a.scale * a.s[adapter * a.rank + k] : a.scale;
      for (size_t i = 0; i < width; ++i) to[i * a.rank + k] = factor * total[k * width + i];
    }
  }
}

}  // namespace

void low_rank_linear_forward(const LowRankLinear& a, void* y, float* t, unsigned threads) {
  const Kernels kernels = fastest();
  const Packed packed(a, false, kernels.panel);
  kernels.pack(a, false, packed);
  const Job job{a, packed, shares(a), y, t, nullptr, nullptr, nullptr};
  parallel(a.batch * shares(a), threads, [&](size_t share) { kernels.run(job, share); });
}

void low_rank_linear_backward(const LowRankLinear& a, const void* grad_y, const float* t, const LowRankGradients& grads,
                              unsigned threads) {
  const Kernels kernels = fastest();
  const Packed packed(a, true, kernels.panel);
  kernels.pack(a, true, packed);
  const size_t rank = low_rank_padded(a.rank);
  std::vector<Sums> sums(a.batch * shares(a));
  for (Sums& sum : sums) {
    sum.u.resize(grads.u ? rank * a.out : 0);
    sum.s.resize(grads.s ? rank : 0);
    sum.v.resize(grads.v ? rank * a.in : 0);
  }
  const Job job{a, packed, shares(a), nullptr, const_cast<float*>(t), grad_y, grads.x, &sums};
  parallel(sums.size(), threads, [&](size_t share) { kernels.run(job, share); });
  finish(a, sums, &Sums::u, a.out, true, grads.u);
  finish(a, sums, &Sums::s, 1, false, grads.s);
  finish(a, sums, &Sums::v, a.in, true, grads.v);
}

}  // namespace lora_comp
