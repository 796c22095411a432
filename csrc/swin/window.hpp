// A Swin block on one window, forward and backward.
#if defined(LORA_COMP_SWIN_WINDOW) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SWIN_WINDOW
#undef LORA_COMP_SWIN_WINDOW
#else
#define LORA_COMP_SWIN_WINDOW
#endif

#include <algorithm>
#include <cstddef>

#include "heads.hpp"
#include "sums.hpp"

SIMD_BEGIN
namespace lora_comp::swin::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;

// Everything that one window needs, forward and backward.
template <class N>
struct Scratch {
  using Right = Buffer<typename N::Right>;
  using Left = Buffer<typename N::Left>;

  Buffer<float> x, kept, attended, low[4];
  float *const qkv, *const middle, *const hidden;        // in `kept`
  Buffer<float> grad, grad_narrow, grad_wide, grad_low;  // the backward pass alone
  Right normed1, normed2, heads, active, grad_right;
  Left rows, grad_rows;
  Head<N> head;
  Prompts<N> prompts;
  const size_t map_size;  // with its sums
  Buffer<float> maps;

  Map map(size_t head) const {
    float* const weight = maps.get() + head * map_size;
    return {weight, weight + map_size - kTokens};
  }
  static size_t words(const Side<N>& side) { return side.row() * kTokens / N::kPack; }

  Scratch(const Packed<N>& p, const SwinBlock& a, bool back)
      : x(p.dim * kTokens),
        kept((p.qkv.forward.outputs + p.dim + p.hidden) * kTokens),
        attended(p.proj.forward.inputs * kTokens),
        qkv(kept.get()),
        middle(qkv + p.qkv.forward.outputs * kTokens),
        hidden(middle + p.dim * kTokens),
        grad(back ? p.dim * kTokens : 0),
        grad_narrow(back ? p.dim * kTokens : 0),
        grad_wide(back ? std::max(p.hidden, p.proj.forward.inputs) * kTokens : 0),
        grad_low(back ? 256 * kTokens : 0),
        normed1(words(p.qkv.forward)),
        normed2(words(p.fc1.forward)),
        heads(words(p.proj.forward)),
        active(words(p.fc2.forward)),
        grad_right(back ? std::max({words(p.qkv.backward), words(p.proj.backward), words(p.fc1.backward),
                                    words(p.fc2.backward)})
                        : 0),
        rows(back ? std::max({p.qkv.forward.inputs, p.proj.forward.inputs, p.hidden}) * kTokens : 0),
        grad_rows(back ? std::max({p.qkv.forward.outputs, p.hidden}) * kTokens : 0),
        prompts(p, a, back),
        map_size((kTokens + prompts.columns + 1) * kTokens),
        maps((back ? p.heads : 1) * map_size) {
    const Linear<N>* const layers[] = {&p.qkv, &p.proj, &p.fc1, &p.fc2};
    for (size_t i = 0; i < 4; ++i) low[i] = Buffer<float>(layers[i]->forward.ranks * kTokens);
  }
};

// The next three leave in the scratch what the backward pass needs of a layer, and its product, unless that is `known`.

// q, k and v of all heads, those of q over sqrt(dim).
template <class N>
Moments project(const Packed<N>& p, bool known, Scratch<N>& s) {
  const Moments m = normalise<N>(s.x.get(), p.dim, p.norm1_weight, p.norm1_bias, s.normed1.get());
  apply_thin(p.qkv.forward, s.normed1.get(), s.low[0].get());
  if (known) return m;
  apply_wide(p.qkv.forward, s.normed1.get(), s.qkv, nullptr);
  const size_t each = p.heads * kHead;
  add_bias(s.qkv, each, p.qkv.bias.get(), 1.0f / std::sqrt(static_cast<float>(p.own_head)));
  add_bias(s.qkv + each * kTokens, 2 * each, p.qkv.bias.get() + each, 1.0f);
  return m;
}

// Attention and the skip over it: s.middle.
template <class N>
void attend_all(const Packed<N>& p, const Window<kTokens>& window, bool keeps_maps, bool known, Scratch<N>& s) {
  const size_t head = kHead * kTokens, each = p.heads * head;
  for (size_t h = 0; h < p.heads; ++h) {
    const float* const q = s.qkv + h * head;
    attend<N>(h, q, q + each, q + 2 * each, p.position + h * kTokens * kTokens, window, s.head, s.prompts,
              s.map(keeps_maps ? h : 0), s.attended.get() + h * head);
  }
  to_right<N>(s.attended.get(), p.heads * kHead, s.heads.get());
  apply_thin(p.proj.forward, s.heads.get(), s.low[1].get());
  if (known) return;
  apply_wide(p.proj.forward, s.heads.get(), s.middle, s.x.get());
  add_bias(s.middle, p.dim, p.proj.bias.get(), 1.0f);
}

// The hidden layer of the MLP before its GELU: s.hidden.
template <class N>
Moments expand(const Packed<N>& p, bool known, Scratch<N>& s) {
  const Moments m = normalise<N>(s.middle, p.dim, p.norm2_weight, p.norm2_bias, s.normed2.get());
  apply_thin(p.fc1.forward, s.normed2.get(), s.low[2].get());
  if (known) return m;
  apply_wide(p.fc1.forward, s.normed2.get(), s.hidden, nullptr);
  add_bias(s.hidden, p.hidden, p.fc1.bias.get(), 1.0f);
  return m;
}

template <class N>
void activate(const float* hidden, size_t channels, typename N::Right* to) {
  for (size_t c = 0; c < channels; c += 2)
    for (size_t t = 0; t < kTokens; t += kWidth) {
      const Vector even = at(hidden + c * kTokens + t), odd = at(hidden + (c + 1) * kTokens + t);
      N::put(to, kTokens, c, t, gelu<N>(even), gelu<N>(odd));
    }
}

// The same, and leaves the slopes of the GELU in place of `hidden`.
template <class N>
void activate_with_slopes(float* hidden, size_t channels, typename N::Right* to) {
  for (size_t c = 0; c < channels; c += 2)
    for (size_t t = 0; t < kTokens; t += kWidth) {
      Vector &even = at(hidden + c * kTokens + t), &odd = at(hidden + (c + 1) * kTokens + t);
      const Vector even_share = normal_share<N>(even), odd_share = normal_share<N>(odd);
      N::put(to, kTokens, c, t, even * even_share, odd * odd_share);
      even = gelu_slope<N>(even, even_share), odd = gelu_slope<N>(odd, odd_share);
    }
}

template <class N>
void forward_window(const Packed<N>& p, const Window<kTokens>& window, Scratch<N>& s, const float* x, float* y,
                    float* kept) {
  gather(x, p.dim, window.place, s.x.get());
  project(p, false, s);
  attend_all(p, window, false, false, s);
  expand(p, false, s);
  if (kept) std::copy_n(s.kept.get(), s.kept.size(), kept);
  activate<N>(s.hidden, p.hidden, s.active.get());
  apply(p.fc2.forward, s.active.get(), s.low[3].get(), s.x.get(), s.middle);
  add_bias(s.x.get(), p.dim, p.fc2.bias.get(), 1.0f);
  scatter(s.x.get(), p.dim, window.place, y);
}

// grad_x = (W^T + V diag(s) U^T) grad_y, unless it is null, and the layer's own gradients. x: (in, tokens), read for
// those of matrices.
template <class N>
void back(const Linear<N>& layer, const typename N::Right* x, const float* low, const float* grad_y, Scratch<N>& s,
          LayerSums& sums, float* grad_x) {
  const Side<N>& side = layer.backward;
  to_right<N>(grad_y, side.inputs, s.grad_right.get());
  if (grad_x)
    apply(side, s.grad_right.get(), s.grad_low.get(), grad_x, nullptr);
  else
    apply_thin(side, s.grad_right.get(), s.grad_low.get());
  if (sums.factors() || sums.dense()) {
    to_left<N>(x, side.outputs, kTokens, s.rows.get());
    to_left<N>(s.grad_right.get(), side.inputs, kTokens, s.grad_rows.get());
  }
  if (sums.low_rank()) low_rank_grads(layer, s.rows.get(), s.grad_rows.get(), low, s.grad_low.get(), sums);
  if (sums.dense()) dense_grads(layer, s.rows.get(), s.grad_rows.get(), grad_y, s.grad_right.get(), sums);
}

template <class N>
void backward_window(const Packed<N>& p, const Window<kTokens>& window, Scratch<N>& s, const float* x,
                     const float* grad_y, float* grad_x, const float* kept, BlockSums& sums) {
  gather(x, p.dim, window.place, s.x.get());
  gather(grad_y, p.dim, window.place, s.grad.get());
  if (kept) std::copy_n(kept, s.kept.size(), s.kept.get());
  const Moments first = project(p, kept, s);
  attend_all(p, window, true, kept, s);
  const Moments second = expand(p, kept, s);

  const bool active = sums.layers[3].low_rank() || sums.layers[3].dense();
  if (active) {  // what the forward pass would have computed next
    const Side<N>& side = p.fc2.forward;
    activate_with_slopes<N>(s.hidden, p.hidden, s.active.get());
    N::multiply(side.thin.get(), side.inputs, s.active.get(), side.inputs, s.low[3].get(), side.ranks, kTokens,
                nullptr);
  }
  back(p.fc2, s.active.get(), s.low[3].get(), s.grad.get(), s, sums.layers[3], s.grad_wide.get());
  for (size_t i = 0; i < p.hidden * kTokens; i += kWidth) {
    const Vector x = at(s.hidden + i);
    at(s.grad_wide.get() + i) *= active ? x : gelu_slope<N>(x, normal_share<N>(x));
  }
  back(p.fc1, s.normed2.get(), s.low[2].get(), s.grad_wide.get(), s, sums.layers[2], s.grad_narrow.get());
  if (sums.dense()) norm_grads(s.grad_narrow.get(), s.middle, second, p.dim, sums.norm2.get());
  normalise_back(s.grad_narrow.get(), s.middle, second, p.dim, p.norm2_weight, s.grad.get());

  back(p.proj, s.heads.get(), s.low[1].get(), s.grad.get(), s, sums.layers[1], s.grad_wide.get());
  const size_t head = kHead * kTokens, each = p.heads * head;
  for (size_t h = 0; h < p.heads; ++h) {
    float* const q = s.qkv + h * head;
    attend_back<N>(h, s.grad_wide.get() + h * head, q, q + each, q + 2 * each, s.head, s.prompts, s.map(h));
    if (sums.dense()) add(s.head.map_grad, kTokens * kTokens, sums.position.get() + h * kTokens * kTokens);
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(p.own_head));
  for (size_t i = 0; i < each; i += kWidth) at(s.qkv + i) *= scale;
  const bool onwards = grad_x || sums.dense();
  back(p.qkv, s.normed1.get(), s.low[0].get(), s.qkv, s, sums.layers[0], onwards ? s.grad_narrow.get() : nullptr);
  if (sums.dense()) norm_grads(s.grad_narrow.get(), s.x.get(), first, p.dim, sums.norm1.get());
  if (!grad_x) return;
  normalise_back(s.grad_narrow.get(), s.x.get(), first, p.dim, p.norm1_weight, s.grad.get());
  scatter(s.grad.get(), p.dim, window.place, grad_x);
}

}  // namespace
}  // namespace lora_comp::swin::SIMD_TARGET
SIMD_END
#endif
