// All windows of a Swin block.
#if defined(LORA_COMP_SWIN_KERNEL) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SWIN_KERNEL
#undef LORA_COMP_SWIN_KERNEL
#else
#define LORA_COMP_SWIN_KERNEL
#endif

#include <algorithm>
#include <cstddef>
#include <vector>

#include "../parallel.hpp"
#include "run.hpp"
#include "window.hpp"

SIMD_BEGIN
namespace lora_comp::swin::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;

// Rows of windows, counted through all images.
struct Share {
  size_t first, last;
};

// As many shares whatever the threads, and their sums added up in order: the same bits with any number of threads. A
// share of gradients has room for all of them, so it should be worth that.
inline std::vector<Share> make_shares(const SwinBlock& a, bool dense) {
  constexpr size_t kMost = 16, kMostDense = 8, kWindows = 8;
  const size_t rows = a.windows.rows(), images = a.own ? a.batch : 1, each = a.own ? rows : rows * a.batch;
  const size_t windows = a.windows.columns() * each;
  const size_t most = dense ? std::min(kMostDense, windows / kWindows) : kMost;
  const size_t parts = std::min(each, std::max<size_t>(1, most / images));
  std::vector<Share> shares;
  for (size_t image = 0; image < images; ++image)
    for (size_t part = 0; part < parts; ++part)
      shares.push_back({image * rows + each * part / parts, image * rows + each * (part + 1) / parts});
  return shares;
}

template <class N>
void run(const Packed<N>& packed, const Job& job, const Share& share, float* grad_prompts, BlockSums* sums) {
  [[maybe_unused]] const typename N::Session session{};
  Scratch<N> scratch(packed, job.block, job.grad_y != nullptr);
  float* const of_all = sums && sums->prompts.size() ? sums->prompts.get() : nullptr;  // the same in every window
  float* const of_map = of_all ? nullptr : grad_prompts;
  const Windows& windows = job.block.windows;
  for (size_t row = share.first; row < share.last; ++row)
    for (size_t column = 0; column < windows.columns(); ++column) {
      const Window<kTokens> window(windows, row / windows.rows(), row % windows.rows() * windows.window,
                                   column * windows.window);
      scratch.prompts.enter(packed, window, row / windows.rows(), row % windows.rows() * windows.window,
                            column * windows.window);
      float* const kept = job.kept ? job.kept + (row * windows.columns() + column) * scratch.kept.size() : nullptr;
      if (job.grad_y)
        backward_window(packed, window, scratch, job.x, job.grad_y, job.out, kept, *sums);
      else
        forward_window(packed, window, scratch, job.x, job.out, kept);
      if (of_map) scratch.prompts.project_back(packed, of_map);
    }
  if (of_all) scratch.prompts.project_back(packed, of_all);
}

// Adds the sums of all shares to the gradients.
inline void unpack(std::vector<BlockSums>& sums, const std::vector<Share>& shares, const SwinBlock& a,
                   const SwinBlockGrad& grad) {
  const std::vector<size_t> plain = counted(a.dim), hidden = counted(a.fc1.out);
  const size_t own_head = a.dim / a.heads, padded = a.heads * kHead;
  const Places places[] = {{plain, in_heads(3 * a.dim, own_head), a.dim, 3 * padded},
                           {in_heads(a.dim, own_head), plain, padded, a.dim},
                           {plain, hidden, a.dim, a.fc1.out},
                           {hidden, plain, a.fc1.out, a.dim}};
  const SwinLayer* const layers[] = {&a.qkv, &a.proj, &a.fc1, &a.fc2};
  const SwinLayerGrad* const grads[] = {&grad.qkv, &grad.proj, &grad.fc1, &grad.fc2};
  for (size_t i = 0; i < sums.size(); ++i)
    for (size_t k = 0; k < 4; ++k)
      unpack_low_rank(sums[i].layers[k], *layers[k], a.own ? shares[i].first / a.windows.rows() : 0, places[k],
                      *grads[k]);
  for (const BlockSums& sum : sums)
    for (size_t i = 0; i < sum.prompts.size(); ++i) grad.prompts[i] += sum.prompts.get()[i];
  if (!grad.dense()) return;
  for (size_t i = 1; i < sums.size(); ++i) sums[0].add_dense(sums[i]);
  for (size_t k = 0; k < 4; ++k) unpack_dense(sums[0].layers[k], *layers[k], places[k], *grads[k]);
  const float *const norm1 = sums[0].norm1.get(), *const norm2 = sums[0].norm2.get();
  add_rows(norm1, plain, grad.norm1_weight);
  add_rows(norm1 + a.dim * kWidth, plain, grad.norm1_bias);
  add_rows(norm2, plain, grad.norm2_weight);
  add_rows(norm2 + a.dim * kWidth, plain, grad.norm2_bias);
  for (size_t i = 0; i < sums[0].position.size(); ++i) grad.position[i] += sums[0].position.get()[i];
}

template <class N>
void run_block(const Job& job, const SwinBlockGrad& grad, unsigned threads) {
  const SwinBlock& a = job.block;
  std::vector<Packed<N>> packed;
  for (size_t image = 0; image < (a.own ? a.batch : 1); ++image) packed.emplace_back(a, image);
  const std::vector<Share> shares = make_shares(a, grad.dense());
  std::vector<BlockSums> sums;
  for (size_t i = 0; job.grad_y && i < shares.size(); ++i) sums.emplace_back(packed.front(), a, grad);
  parallel(shares.size(), threads, [&](size_t i) {
    run(packed[a.own ? shares[i].first / a.windows.rows() : 0], job, shares[i], grad.prompts,
        job.grad_y ? &sums[i] : nullptr);
  });
  unpack(sums, shares, a, grad);
}

}  // namespace
}  // namespace lora_comp::swin::SIMD_TARGET
SIMD_END
#endif
