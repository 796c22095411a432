// The gradients of a block's parameters: sums over the windows of a share.
#if defined(LORA_COMP_SWIN_SUMS) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SWIN_SUMS
#undef LORA_COMP_SWIN_SUMS
#else
#define LORA_COMP_SWIN_SUMS
#endif

#include <cstddef>
#include <vector>

#include "layers.hpp"

SIMD_BEGIN
namespace lora_comp::swin::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;

// Those of one layer, in its padded channels; empty where none is wanted.
struct LayerSums {
  Buffer<float> u, s, v;       // (ranks / k, out, k), (ranks), (ranks / k, in, k), k: kWidth; u and v both or neither
  Buffer<float> weight, bias;  // (out, in), (out, kWidth) with sums of rows still to be taken

  template <class N>
  LayerSums(const Linear<N>& layer, const SwinLayerGrad& grad)
      : u(grad.u || grad.v ? layer.forward.ranks * layer.forward.outputs : 0),
        s(grad.u || grad.v || grad.s ? layer.forward.ranks : 0),
        v(grad.u || grad.v ? layer.forward.ranks * layer.forward.inputs : 0),
        weight(grad.weight ? layer.forward.outputs * layer.forward.inputs : 0),
        bias(grad.weight ? layer.forward.outputs * kWidth : 0) {}

  bool low_rank() const { return s.size() > 0; }
  bool factors() const { return u.size() > 0; }
  bool dense() const { return weight.size() > 0; }
};

struct BlockSums {
  LayerSums layers[4];                   // qkv, proj, fc1, fc2
  Buffer<float> norm1, norm2, position;  // see `norm_grads`; (heads, keys, queries)
  Buffer<float> prompts;                 // (count, dim) of those that are the same in every window

  template <class N>
  BlockSums(const Packed<N>& p, const SwinBlock& a, const SwinBlockGrad& grad)
      : layers{{p.qkv, grad.qkv}, {p.proj, grad.proj}, {p.fc1, grad.fc1}, {p.fc2, grad.fc2}},
        norm1(grad.dense() ? 2 * p.dim * kWidth : 0),
        norm2(grad.dense() ? 2 * p.dim * kWidth : 0),
        position(grad.dense() ? p.heads * kTokens * kTokens : 0),
        prompts(grad.prompts && a.prompts.everywhere() ? a.prompts.count * p.dim : 0) {}

  bool dense() const { return position.size() > 0; }

  void add_dense(const BlockSums& other) {
    for (size_t i = 0; i < 4; ++i) {
      add(other.layers[i].weight.get(), layers[i].weight.size(), layers[i].weight.get());
      add(other.layers[i].bias.get(), layers[i].bias.size(), layers[i].bias.get());
    }
    add(other.norm1.get(), norm1.size(), norm1.get());
    add(other.norm2.get(), norm2.size(), norm2.get());
    add(other.position.get(), position.size(), position.get());
  }
};

// u += grad_y low^T, v += x low_back^T, s += sums over the tokens of low times low_back; all padded.
//   low (ranks, tokens) = V^T x, low_back = U^T grad_y; x and grad_y (channels, tokens) as Left.
template <class N>
void low_rank_grads(const Linear<N>& layer, const typename N::Left* x, const typename N::Left* grad_y, const float* low,
                    const float* low_back, LayerSums& sums) {
  const size_t ranks = layer.forward.ranks, pairs = kTokens / N::kPack;
  for (size_t k = 0; k < layer.rank; ++k) {
    Vector sum = {};
    for (size_t t = 0; t < kTokens; t += kWidth) sum += at(low + k * kTokens + t) * at(low_back + k * kTokens + t);
    for (size_t i = 0; i < kWidth; ++i) sums.s.get()[k] += sum[i];
  }
  if (!sums.factors()) return;
  alignas(64) typename N::Left left[kWidth * kTokens];
  alignas(64) typename N::Right right[kTokens * kWidth];
  for (size_t k = 0; k < ranks; k += kWidth) {
    const auto accumulate = [&](const float* from, const typename N::Left* by, size_t channels, float* to) {
      rows_to_left<N>(from + k * kTokens, kWidth, left);
      transpose_words<N>(words(left), kWidth, pairs, words(right));
      float* const block = to + k * channels;  // (ranks / kWidth, channels, kWidth)
      N::multiply(by, kTokens, right, kTokens, block, channels, kWidth, block);
    };
    accumulate(low, grad_y, layer.forward.outputs, sums.u.get());
    accumulate(low_back, x, layer.forward.inputs, sums.v.get());
  }
}

// weight += grad_y x^T, bias += grad_y. x (in, tokens) and grad_y (out, tokens) as Left; `tokens` is room for x with
// its tokens as the inner size.
template <class N>
void dense_grads(const Linear<N>& layer, typename N::Left* x, const typename N::Left* grad_y, const float* grad_rows,
                 typename N::Right* tokens, LayerSums& sums) {
  const size_t in = layer.forward.inputs, out = layer.forward.outputs;
  transpose_words<N>(words(x), in, kTokens / N::kPack, words(tokens));
  N::multiply(grad_y, kTokens, tokens, kTokens, sums.weight.get(), out, in, sums.weight.get());
  for (size_t c = 0; c < out; ++c) {
    Vector sum = {};
    for (size_t t = 0; t < kTokens; t += kWidth) sum += at(grad_rows + c * kTokens + t);
    at(sums.bias.get() + c * kWidth) += sum;
  }
}

// Adds the sums of the rows of (., kWidth) that are at `places`.
inline void add_rows(const float* rows, const std::vector<size_t>& places, float* to) {
  for (size_t i = 0; i < places.size(); ++i)
    for (size_t k = 0; k < kWidth; ++k) to[i] += rows[places[i] * kWidth + k];
}

// A layer's channels among the padded ones, and how many those are.
struct Places {
  std::vector<size_t> in, out;
  size_t all_in, all_out;
};

// Adds the low-rank sums of an image's shares, taken out of their padding, to the gradients.
inline void unpack_low_rank(const LayerSums& sums, const SwinLayer& layer, size_t image, const Places& places,
                            const SwinLayerGrad& grad) {
  const auto unpack = [&](const float* from, const std::vector<size_t>& own, size_t all, float* to) {
    for (size_t i = 0; i < own.size(); ++i)
      for (size_t k = 0; k < layer.rank; ++k)
        to[i * layer.rank + k] += from[k / kWidth * kWidth * all + own[i] * kWidth + k % kWidth];
  };
  for (size_t k = 0; grad.s && k < layer.rank; ++k) grad.s[image * layer.rank + k] += sums.s.get()[k];
  if (grad.u) unpack(sums.u.get(), places.out, places.all_out, grad.u + image * layer.out * layer.rank);
  if (grad.v) unpack(sums.v.get(), places.in, places.all_in, grad.v + image * layer.in * layer.rank);
}

inline void unpack_dense(const LayerSums& sums, const SwinLayer& layer, const Places& places,
                         const SwinLayerGrad& grad) {
  for (size_t o = 0; o < layer.out; ++o)
    for (size_t i = 0; i < layer.in; ++i)
      grad.weight[o * layer.in + i] += sums.weight.get()[places.out[o] * places.all_in + places.in[i]];
  add_rows(sums.bias.get(), places.out, grad.bias);
}

}  // namespace
}  // namespace lora_comp::swin::SIMD_TARGET
SIMD_END
#endif
