// The weights of a Swin block as its products want them.
#if defined(LORA_COMP_SWIN_PACK) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SWIN_PACK
#undef LORA_COMP_SWIN_PACK
#else
#define LORA_COMP_SWIN_PACK
#endif

#include <cstddef>
#include <vector>

#include "../simd/buffer.hpp"
#include "../simd/product.hpp"
#include "block.hpp"

SIMD_BEGIN
namespace lora_comp::swin::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;

using simd::Buffer;

constexpr size_t kTokens = 64;  // of a window of 8x8
constexpr size_t kHead = 16;    // channels of a head, padded with zeros

inline size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

// A matrix whose last columns hold what multiplies the low-rank values: [W U] or, for the way back, [W^T V].
template <class N>
struct Side {
  Buffer<typename N::Left> wide;  // (outputs, inputs + extra)
  Buffer<typename N::Left> thin;  // (ranks, inputs): V^T, or U^T for the way back
  size_t inputs, outputs, extra, ranks;
  const float* gain;  // (ranks): s

  Side(size_t inputs, size_t outputs, size_t rank, const float* gain)
      : wide(outputs * (inputs + round_up(rank, N::kInner))),
        thin(round_up(rank, kWidth) * inputs),
        inputs(inputs),
        outputs(outputs),
        extra(round_up(rank, N::kInner)),
        ranks(round_up(rank, kWidth)),
        gain(gain) {}

  size_t row() const { return inputs + extra; }
};

template <class N>
struct Linear {
  Buffer<float> gain, bias;
  Side<N> forward, backward;
  size_t rank;

  // in_places, out_places: where among the padded channels the layer's own are.
  Linear(const SwinLayer& a, size_t image, const std::vector<size_t>& in_places, const std::vector<size_t>& out_places,
         size_t in, size_t out)
      : gain(round_up(a.rank, 32)),
        bias(out),
        forward(in, out, a.rank, gain.get()),
        backward(out, in, a.rank, gain.get()),
        rank(a.rank) {
    const float* const u = a.u + image * a.out * a.rank;
    const float* const v = a.v + image * a.in * a.rank;
    for (size_t k = 0; k < rank; ++k) gain.get()[k] = a.s[image * rank + k];
    const auto set = [](Buffer<typename N::Left>& to, size_t r, size_t k, size_t row, float x) {
      to.get()[r * row + k] = N::number(x);
    };
    for (size_t o = 0; o < a.out; ++o) {
      const size_t to = out_places[o];
      bias.get()[to] = a.bias[o];
      for (size_t i = 0; i < a.in; ++i) {
        set(forward.wide, to, in_places[i], forward.row(), a.weight[o * a.in + i]);
        set(backward.wide, in_places[i], to, backward.row(), a.weight[o * a.in + i]);
      }
      for (size_t k = 0; k < rank; ++k) {
        set(forward.wide, to, in + k, forward.row(), u[o * rank + k]);
        set(backward.thin, k, to, out, u[o * rank + k]);
      }
    }
    for (size_t i = 0; i < a.in; ++i)
      for (size_t k = 0; k < rank; ++k) {
        set(forward.thin, k, in_places[i], in, v[i * rank + k]);
        set(backward.wide, in_places[i], out + k, backward.row(), v[i * rank + k]);
      }
  }
};

inline std::vector<size_t> counted(size_t size) {
  std::vector<size_t> places(size);
  for (size_t i = 0; i < size; ++i) places[i] = i;
  return places;
}

// Of the channels of `parts` times `heads` heads, each padded to kHead.
inline std::vector<size_t> in_heads(size_t channels, size_t dim) {
  std::vector<size_t> places(channels);
  for (size_t i = 0; i < channels; ++i) places[i] = i / dim * kHead + i % dim;
  return places;
}

template <class N>
struct Packed {
  size_t dim, heads, own_head, hidden;  // own_head: channels of a head before padding
  const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias, *position;
  Linear<N> qkv, proj, fc1, fc2;

  Packed(const SwinBlock& a, size_t image)
      : dim(a.dim),
        heads(a.heads),
        own_head(a.dim / a.heads),
        hidden(a.fc1.out),
        norm1_weight(a.norm1_weight),
        norm1_bias(a.norm1_bias),
        norm2_weight(a.norm2_weight),
        norm2_bias(a.norm2_bias),
        position(a.position),
        qkv(a.qkv, image, counted(dim), in_heads(3 * dim, own_head), dim, 3 * heads * kHead),
        proj(a.proj, image, in_heads(dim, own_head), counted(dim), heads * kHead, dim),
        fc1(a.fc1, image, counted(dim), counted(hidden), dim, hidden),
        fc2(a.fc2, image, counted(hidden), counted(dim), hidden, dim) {}
};

}  // namespace
}  // namespace lora_comp::swin::SIMD_TARGET
SIMD_END
#endif
