// The attention of the heads of one window. A map is held with a row for each key, so that a softmax is a sum of rows.
#if defined(LORA_COMP_SWIN_HEADS) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SWIN_HEADS
#undef LORA_COMP_SWIN_HEADS
#else
#define LORA_COMP_SWIN_HEADS
#endif

#include <cstddef>
#include <cstring>

#include "../attention/window.hpp"
#include "prompts.hpp"

SIMD_BEGIN
namespace lora_comp::swin::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;

// What one head needs. `deep` operands have the channels of a head padded to the inner size of a product.
template <class N>
struct alignas(64) Head {
  static constexpr size_t kDeep = N::kInner > kHead ? N::kInner : kHead;
  using Left = typename N::Left;
  using Right = typename N::Right;

  Right query[kDeep / N::kPack * kTokens] = {}, key[kDeep / N::kPack * kTokens] = {},
                                 value[kDeep / N::kPack * kTokens] = {};  // deep
  Left key_tokens[kTokens * kDeep], value_tokens[kTokens * kDeep];        // (tokens, deep)
  Left query_rows[kHead * kTokens], key_rows[kHead * kTokens], value_rows[kHead * kTokens];
  Right keys[kTokens * kTokens / N::kPack];  // the map, its keys as the inner size

  // Only the backward pass:
  float map_grad[kTokens * kTokens];
  Left map_rows[kTokens * kTokens];
  Right queries[kTokens * kTokens / N::kPack];  // a map, its queries as the inner size
};

// exp(logit - the query's largest), and its sums over the keys.
struct Map {
  float* weight;  // (keys, queries), the keys of prompts last
  float* total;   // (queries)
};

template <class N>
void deep_transpose(const typename N::Right* deep, typename N::Left* to) {
  transpose_words<N>(words(deep), kHead, kTokens, words(to));
}

// A map with its queries as the inner size: h.queries.
template <class N>
void map_transpose(const float* map, Head<N>& h) {
  transpose_words<N>(words(as_left<N>(map, kTokens, h.map_rows)), kTokens, kTokens / N::kPack, words(h.queries));
}

// out (kHead, tokens) = values times the map's shares; leaves the map as it was computed.
template <class N, class Right = typename N::Right>
void attend(size_t head, const float* q, const float* k, const float* v, const float* position,
            const Window<kTokens>& window, Head<N>& h, Prompts<N>& prompts, const Map& map, float* out) {
  const Right* const query = as_right<N>(q, kHead, h.query);
  static_assert(Head<N>::kDeep / N::kPack == kHead, "so many words hold the channels of a head");
  deep_transpose<N>(as_right<N>(k, kHead, h.key), h.key_tokens);
  N::multiply(h.key_tokens, Head<N>::kDeep, query, Head<N>::kDeep, map.weight, kTokens, kTokens, position);
  float* const of_prompts = map.weight + kTokens * kTokens;
  if (prompts.columns) prompts.add_logits(head, query, of_prompts);
  Vector largest[kVectors];
  for (Vector& x : largest) x = Vector{} - 3.0e38f;
  for (size_t j = 0; j < prompts.keys(); ++j)
    for (size_t i = 0; i < kVectors; ++i) {
      Vector& x = at(map.weight + j * kTokens + i * kWidth);
      if (window.mixed && j < prompts.bounded) {
        Integers regions;
        std::memcpy(&regions, window.region + i * kWidth, sizeof regions);
        x += regions == prompts.region[j] ? Vector{} : Vector{} + kMasked;
      }
      largest[i] = x > largest[i] ? x : largest[i];
    }
  Vector sum[kVectors] = {};
  for (size_t j = 0; j < prompts.keys(); ++j)
    for (size_t i = 0; i < kVectors; ++i) {
      Vector& x = at(map.weight + j * kTokens + i * kWidth);
      x = exp<N>(x - largest[i]);
      sum[i] += x;
    }
  Vector inverse[kVectors];
  for (size_t i = 0; i < kVectors; ++i) {
    at(map.total + i * kWidth) = sum[i];
    inverse[i] = 1.0f / sum[i];
  }
  const Right* const keys = as_right<N>(map.weight, kTokens, h.keys);
  N::multiply(as_left<N>(v, kHead, h.value_rows), kTokens, keys, kTokens, out, kHead, kTokens, nullptr);
  if (prompts.columns) prompts.add_values(head, of_prompts, out);
  for (size_t c = 0; c < kHead; ++c)
    for (size_t i = 0; i < kVectors; ++i) at(out + c * kTokens + i * kWidth) *= inverse[i];
}

// After `attend`: from the gradient of the head's output (kHead, tokens) to those of q, k and v, in place of them, and
// of the keys and values of prompts.
template <class N>
void attend_back(size_t head, const float* grad, float* q, float* k, float* v, Head<N>& h, Prompts<N>& prompts,
                 const Map& map) {
  using Left = typename N::Left;
  const Left* const query_rows = as_left<N>(q, kHead, h.query_rows);
  rows_to_left<N>(k, kHead, h.key_rows);  // k is overwritten before they are read
  deep_transpose<N>(as_right<N>(v, kHead, h.value), h.value_tokens);
  const auto* const grad_right = as_right<N>(grad, kHead, h.query);  // whose own values are not needed again
  N::multiply(h.value_tokens, Head<N>::kDeep, grad_right, Head<N>::kDeep, h.map_grad, kTokens, kTokens, nullptr);
  float* const of_prompts = map.weight + kTokens * kTokens;
  if (prompts.columns) prompts.add_map_grad(head, grad_right);
  struct {
    float *weight, *grad;
    size_t keys;
  } const parts[] = {{map.weight, h.map_grad, kTokens}, {of_prompts, prompts.map_grad.get(), prompts.columns}};
  for (size_t t = 0; t < kTokens; t += kWidth) {
    const Vector inverse = 1.0f / at(map.total + t);
    Vector mean = {};
    for (const auto& part : parts)
      for (size_t j = 0; j < part.keys; ++j) {
        at(part.weight + j * kTokens + t) *= inverse;
        mean += at(part.weight + j * kTokens + t) * at(part.grad + j * kTokens + t);
      }
    for (const auto& part : parts)
      for (size_t j = 0; j < part.keys; ++j)
        at(part.grad + j * kTokens + t) = at(part.weight + j * kTokens + t) * (at(part.grad + j * kTokens + t) - mean);
  }
  alignas(64) Left grad_rows[kHead * kTokens];
  map_transpose<N>(map.weight, h);
  const Left* const grad_left = as_left<N>(grad, kHead, grad_rows);
  N::multiply(grad_left, kTokens, h.queries, kTokens, v, kHead, kTokens, nullptr);
  map_transpose<N>(h.map_grad, h);
  N::multiply(query_rows, kTokens, h.queries, kTokens, k, kHead, kTokens, nullptr);
  const auto* const keys = as_right<N>(h.map_grad, kTokens, h.keys);
  if (prompts.columns) prompts.back(head, grad_left, query_rows, of_prompts);
  N::multiply(h.key_rows, kTokens, keys, kTokens, q, kHead, kTokens, nullptr);
  if (prompts.columns) prompts.add_query_grad(head, q);
}

}  // namespace
}  // namespace lora_comp::swin::SIMD_TARGET
SIMD_END
#endif
