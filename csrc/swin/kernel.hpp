// All windows of a Swin block. A file that includes this between BEGIN_TARGET and END_TARGET is a kernel for that
// instruction set: everything in these headers has internal linkage, so that each kernel has its own.
#pragma once

#include <array>

#include "../parallel.hpp"
#include "run.hpp"
#include "window.hpp"

namespace lora_comp::swin {
namespace {

// A share of the windows of one picture: rows of them.
struct Share {
  size_t picture, first, last;
};

template <class N>
void run(const Packed<N>& packed, const Job& job, const Share& share, LowRankSums* sums) {
  [[maybe_unused]] const typename N::Session session{};
  Scratch<N> scratch(packed, job.grad_y != nullptr);
  const Windows& windows = job.block.windows;
  for (size_t row = share.first; row < share.last; ++row)
    for (size_t left = 0; left < windows.width; left += windows.window) {
      const Window<kTokens> window(windows, share.picture, row * windows.window, left);
      if (job.grad_y)
        backward_window(packed, window, scratch, job.x, job.grad_y, job.out, sums);
      else
        forward_window(packed, window, scratch, job.x, job.out);
    }
}

// Adds the sums of a picture's shares, taken out of their padding, to the gradients.
void unpack(const LowRankSums& sums, const SwinLayer& layer, size_t picture, const std::vector<size_t>& in_places,
            const std::vector<size_t>& out_places, size_t in, size_t out, const LowRankGrad& grad) {
  const auto add = [&](const float* from, const std::vector<size_t>& places, size_t padded, float* to) {
    for (size_t i = 0; i < places.size(); ++i)
      for (size_t k = 0; k < layer.rank; ++k)
        to[i * layer.rank + k] += from[k / kWidth * kWidth * padded + places[i] * kWidth + k % kWidth];
  };
  for (size_t k = 0; grad.s && k < layer.rank; ++k) grad.s[picture * layer.rank + k] += sums.s.get()[k];
  if (grad.u) add(sums.u.get(), out_places, out, grad.u + picture * layer.out * layer.rank);
  if (grad.v) add(sums.v.get(), in_places, in, grad.v + picture * layer.in * layer.rank);
}

template <class N>
void run_block(const Job& job, const SwinBlockGrad& grad, unsigned threads) {
  const SwinBlock& a = job.block;
  std::vector<Packed<N>> packed;
  for (size_t picture = 0; picture < (a.own ? a.batch : 1); ++picture) packed.emplace_back(a, picture);
  // As many shares whatever the threads, and their sums added up in order: the same bits with any number of threads.
  const size_t rows = a.windows.rows(), parts = std::min(rows, std::max<size_t>(1, 16 / std::max<size_t>(1, a.batch)));
  std::vector<Share> shares;
  for (size_t picture = 0; picture < a.batch; ++picture)
    for (size_t part = 0; part < parts; ++part)
      shares.push_back({picture, rows * part / parts, rows * (part + 1) / parts});
  const LowRankGrad* const grads[] = {&grad.qkv, &grad.proj, &grad.fc1, &grad.fc2};
  std::vector<std::array<LowRankSums, 4>> sums(job.grad_y ? shares.size() : 0);
  for (std::array<LowRankSums, 4>& share : sums) {
    const Packed<N>& p = packed.front();
    const Linear<N>* const layers[] = {&p.qkv, &p.proj, &p.fc1, &p.fc2};
    for (size_t i = 0; i < 4; ++i) share[i] = LowRankSums(layers[i]->forward.inputs, layers[i]->forward.outputs,
        layers[i]->forward.ranks, grads[i]->s || grads[i]->u || grads[i]->v, grads[i]->u || grads[i]->v);
  }
  parallel(shares.size(), threads, [&](size_t i) {
    run(packed[a.own ? shares[i].picture : 0], job, shares[i], job.grad_y ? sums[i].data() : nullptr);
  });
  const std::vector<size_t> plain = counted(a.dim), hidden = counted(a.fc1.out);
  const size_t own_head = a.dim / a.heads, padded = a.heads * kHead;
  for (size_t i = 0; i < sums.size(); ++i) {
    const size_t to = a.own ? shares[i].picture : 0;
    unpack(sums[i][0], a.qkv, to, plain, in_heads(3 * a.dim, own_head), a.dim, 3 * padded, grad.qkv);
    unpack(sums[i][1], a.proj, to, in_heads(a.dim, own_head), plain, padded, a.dim, grad.proj);
    unpack(sums[i][2], a.fc1, to, plain, hidden, a.dim, a.fc1.out, grad.fc1);
    unpack(sums[i][3], a.fc2, to, hidden, plain, a.fc1.out, a.dim, grad.fc2);
  }
}

}  // namespace
}  // namespace lora_comp::swin
