// The prompts of a window: keys and values beside those of its tokens, without queries and without a position bias
// (Chen et al., "Transferring Transformer-based Image Compression from Human Perception to Machine Perception", ICCV
// 2023).
#if defined(LORA_COMP_SWIN_PROMPTS) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SWIN_PROMPTS
#undef LORA_COMP_SWIN_PROMPTS
#else
#define LORA_COMP_SWIN_PROMPTS
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "layers.hpp"

SIMD_BEGIN
namespace lora_comp::swin::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;

// The prompts of the window at hand, a column each, and more columns to fill up what a product takes. Without prompts
// `columns` is 0 and everything is empty.
template <class N>
struct Prompts {
  using Right = typename N::Right;
  using Left = typename N::Left;
  static constexpr size_t kDeep = N::kInner > kHead ? N::kInner : kHead;  // see Head
  static constexpr size_t kUnit = N::kInner > 16 ? N::kInner : 16;

  const SwinPrompts& given;
  const Windows windows;  // of prompts
  const size_t columns, values;
  Buffer<float> x;                      // (dim, columns)
  Buffer<float> projected, grad;        // of all heads keys and then values, each (heads kHead, columns)
  Buffer<float> map_grad;               // (columns, queries)
  Buffer<Right> right;                  // x, or `grad`
  Buffer<Right> deep, weights;          // of a head: (deep, columns), and a map with its queries or its keys inside
  Buffer<Left> tokens, rows, map_rows;  // (columns, deep), (kHead, columns), (columns, queries)
  ptrdiff_t place[kMostPrompts];
  int32_t region[kTokens + kMostPrompts];  // of each key
  size_t bounded;                          // keys that are seen in their region alone; the others are seen by all

  Prompts(const Packed<N>& p, const SwinBlock& a, bool back)
      : given(a.prompts),
        windows(given.windows(a.windows)),
        columns(round_up(given.count, kUnit)),
        values(p.heads * kHead * columns),
        x(p.dim * columns),
        projected(2 * values),
        grad(back ? 2 * values : 0),
        map_grad(back ? columns * kTokens : 0),
        right(std::max(p.dim, 2 * p.heads * kHead) * columns / N::kPack),
        deep(kDeep * columns / N::kPack),
        weights(columns * kTokens / N::kPack),
        tokens(columns * kDeep),
        rows(kHead * columns),
        map_rows(columns * kTokens) {
    bounded = given.everywhere() ? kTokens : kTokens + given.count;
    for (size_t i = 0; i < kMostPrompts; ++i) place[i] = i < given.count ? static_cast<ptrdiff_t>(i) : -1;
    if (columns && given.everywhere()) project(p);
  }

  size_t keys() const { return kTokens + given.count; }
  float* own_keys(size_t head) const { return projected.get() + head * kHead * columns; }
  float* own_values(size_t head) const { return own_keys(head) + values; }

  // Moves on to the window of tokens at (top, left).
  void enter(const Packed<N>& p, const Window<kTokens>& window, size_t batch, size_t top, size_t left) {
    std::copy_n(window.region, kTokens, region);
    if (!columns || given.everywhere()) return;
    for (size_t i = 0; i < given.count; ++i) {
      const Token token(windows, batch, top / given.spacing, left / given.spacing, i);
      place[i] = token.place, region[kTokens + i] = token.region;
    }
    if (given.published) {  // prompts are the first of the keys, but the last of the mask
      for (size_t i = 0; i < kTokens; ++i)
        region[i] = window.region[i + 16 < kTokens ? i + 16 : 16 + 2 * (i + 16 - kTokens)];
      std::copy_n(window.region, given.count, region + kTokens);
    }
    project(p);
  }

  // Keys and values of the prompts.
  void project(const Packed<N>& p) {
    gather(given.x, p.dim, place, x.get(), columns);
    const Side<N>& side = p.qkv.forward;
    const size_t each = p.heads * kHead;
    const Right* const from = as_right<N>(x.get(), p.dim, right.get(), columns);
    N::multiply(side.wide.get() + each * side.row(), side.row(), from, p.dim, projected.get(), 2 * each, columns,
                nullptr);
    add_bias(projected.get(), 2 * each, p.qkv.bias.get() + each, 1.0f, columns);
  }

  // From `grad` to that of x: writes it where the prompts are.
  void project_back(const Packed<N>& p, float* to) {
    const Side<N>& side = p.qkv.backward;
    const size_t each = p.heads * kHead;
    const Right* const from = as_right<N>(grad.get(), 2 * each, right.get(), columns);
    N::multiply(side.wide.get() + each, side.row(), from, 2 * each, x.get(), p.dim, columns, nullptr);
    scatter(x.get(), p.dim, place, to, columns);
  }

  // Their rows of a head's map, whose logits are added below those of tokens.
  void add_logits(size_t head, const Right* query, float* logits) {
    N::multiply(turned(own_keys(head)), kDeep, query, kDeep, logits, columns, kTokens, nullptr);
  }

  // out (kHead, tokens) += values times the map's shares.
  void add_values(size_t head, float* shares, float* out) {
    std::fill(shares + given.count * kTokens, shares + columns * kTokens, 0.0f);
    N::multiply(as_left<N>(own_values(head), kHead, rows.get(), columns), columns,
                as_right<N>(shares, columns, weights.get()), columns, out, kHead, kTokens, out);
  }

  // What comes back to the map of a head, from the gradient of its output.
  void add_map_grad(size_t head, const Right* grad_right) {
    N::multiply(turned(own_values(head)), kDeep, grad_right, kDeep, map_grad.get(), columns, kTokens, nullptr);
  }

  // The gradients of a head's keys and values, from that of its output and of its map.
  void back(size_t head, const Left* grad_rows, const Left* query_rows, const float* shares) {
    float *const key_grad = grad.get() + head * kHead * columns, *const value_grad = key_grad + values;
    const bool sums = given.everywhere();  // over all windows
    N::multiply(grad_rows, kTokens, queries_inside(shares), kTokens, value_grad, kHead, columns,
                sums ? value_grad : nullptr);
    N::multiply(query_rows, kTokens, queries_inside(map_grad.get()), kTokens, key_grad, kHead, columns,
                sums ? key_grad : nullptr);
  }

  // What the queries of a head get from its map.
  void add_query_grad(size_t head, float* q) {
    N::multiply(as_left<N>(own_keys(head), kHead, rows.get(), columns), columns,
                as_right<N>(map_grad.get(), columns, weights.get()), columns, q, kHead, kTokens, q);
  }

 private:
  // (kHead, columns) to (columns, deep).
  const Left* turned(const float* from) {
    transpose_words<N>(words(as_right<N>(from, kHead, deep.get(), columns)), kHead, columns, words(tokens.get()));
    return tokens.get();
  }

  const Right* queries_inside(const float* map) {
    const Left* const left = as_left<N>(map, columns, map_rows.get());
    transpose_words<N>(words(left), columns, kTokens / N::kPack, words(weights.get()));
    return weights.get();
  }
};

}  // namespace
}  // namespace lora_comp::swin::SIMD_TARGET
SIMD_END
#endif
