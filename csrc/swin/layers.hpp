// The layers of a Swin block on the tokens of one window, forward and backward. Activations are float32, a row of
// tokens for each channel.
#if defined(LORA_COMP_SWIN_LAYERS) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_SWIN_LAYERS
#undef LORA_COMP_SWIN_LAYERS
#else
#define LORA_COMP_SWIN_LAYERS
#endif

#include <cmath>
#include <cstddef>

#include "pack.hpp"

SIMD_BEGIN
namespace lora_comp::swin::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;

constexpr size_t kVectors = kTokens / kWidth;
constexpr float kEpsilon = 1e-5f;  // of the normalisation

// (channels, tokens) to a Right.
template <class N>
void to_right(const float* rows, size_t channels, typename N::Right* to, size_t tokens = kTokens) {
  for (size_t c = 0; c < channels; c += 2)
    for (size_t t = 0; t < tokens; t += kWidth)
      N::put(to, tokens, c, t, at(rows + c * tokens + t), at(rows + (c + 1) * tokens + t));
}

template <class N>
void rows_to_left(const float* rows, size_t channels, typename N::Left* to, size_t tokens = kTokens) {
  for (size_t i = 0; i < channels * tokens; i += kWidth) N::put(to + i, at(rows + i));
}

// The same without a copy where the numbers are the operand already, which `room` is for otherwise.
template <class N>
const typename N::Right* as_right(const float* rows, size_t channels, typename N::Right* room,
                                  size_t tokens = kTokens) {
  if constexpr (N::kPack == 1) return rows;
  to_right<N>(rows, channels, room, tokens);
  return room;
}

template <class N>
const typename N::Left* as_left(const float* rows, size_t channels, typename N::Left* room, size_t tokens = kTokens) {
  if constexpr (N::kPack == 1) return rows;
  rows_to_left<N>(rows, channels, room, tokens);
  return room;
}

// The tokens at `place` of a map, channel by channel; zeros for those outside, where it is -1.
inline void gather(const float* from, size_t channels, const ptrdiff_t* place, float* to, size_t tokens = kTokens) {
  for (size_t t = 0; t < tokens; t += kWidth)
    for (size_t c = 0; c < channels; c += kWidth) {
      Words block[kWidth] = {};
      for (size_t i = 0; i < kWidth; ++i)
        if (place[t + i] >= 0)
          block[i] = same_bits<Words>(load(from + static_cast<size_t>(place[t + i]) * channels + c));
      simd::transpose(block);
      for (size_t i = 0; i < kWidth; ++i) at(to + (c + i) * tokens + t) = same_bits<Vector>(block[i]);
    }
}

// The other way.
inline void scatter(const float* from, size_t channels, const ptrdiff_t* place, float* to, size_t tokens = kTokens) {
  for (size_t t = 0; t < tokens; t += kWidth)
    for (size_t c = 0; c < channels; c += kWidth) {
      Words block[kWidth];
      for (size_t i = 0; i < kWidth; ++i) block[i] = same_bits<Words>(at(from + (c + i) * tokens + t));
      simd::transpose(block);
      for (size_t i = 0; i < kWidth; ++i)
        if (place[t + i] >= 0)
          store(to + static_cast<size_t>(place[t + i]) * channels + c, same_bits<Vector>(block[i]));
    }
}

inline void add_bias(float* rows, size_t channels, const float* bias, float factor, size_t tokens = kTokens) {
  for (size_t c = 0; c < channels; ++c)
    for (size_t t = 0; t < tokens; t += kWidth) {
      Vector& x = at(rows + c * tokens + t);
      x = (x + bias[c]) * factor;
    }
}

inline void add(const float* from, size_t size, float* to) {
  for (size_t i = 0; i < size; i += kWidth) at(to + i) += at(from + i);
}

// exp of what is not above 0, as finely as N needs it.
template <class N>
INLINE Vector exp(Vector x) {
  if constexpr (N::kPack == 1) return exp_of(x);
  return rough_exp2(x * 1.44269504f);
}

// Phi(x), to 1.2e-7: 1/2 + x p(x^2), p fitted for x up to 5.2.
INLINE Vector fine_normal_share(Vector x) {
  constexpr float kMost = 5.2f;
  x = x > kMost ? Vector{} + kMost : x;
  x = x > -kMost ? x : Vector{} - kMost;
  const Vector u = x * x * (2 / (kMost * kMost)) - 1.0f;
  const Vector square = u * u;
  Vector even = 2.0239360e-4f * square + 6.0074724e-4f, odd = -5.6229194e-4f * square - 9.7851106e-4f;
  even = even * square + 2.6624587e-3f, odd = odd * square - 5.0673732e-3f;
  even = even * square + 8.0100792e-3f, odd = odd * square - 1.2353357e-2f;
  even = even * square + 1.8133925e-2f, odd = odd * square - 2.4763450e-2f;
  even = even * square + 3.1962324e-2f, odd = odd * square - 3.9925396e-2f;
  even = even * square + 5.0026111e-2f, odd = odd * square - 6.7743808e-2f;
  even = even * square + 1.3594998e-1f;
  return (odd * u + even) * x + 0.5f;
}

// Phi(x), to 5e-5 and its smallest values to 1 %: of -|x| it is 2 to the power of a polynomial.
INLINE Vector rough_normal_share(Vector x) {
  const auto negative = x < 0.0f;
  Vector size = negative ? -x : x;
  size = size > 6.0f ? Vector{} + 6.0f : size;
  Vector p = size * -3.3977953e-4f + 6.2123225e-3f;
  p = p * size - 5.0143778e-2f;
  p = p * size - 4.6106901e-1f;
  p = p * size - 1.150659f;
  p = p * size - 1.0000153f;
  const Vector tail = rough_exp2(p);
  return negative ? tail : 1.0f - tail;
}

template <class N>
INLINE Vector normal_share(Vector x) {
  return N::kPack == 1 ? fine_normal_share(x) : rough_normal_share(x);
}

struct Moments {
  Vector mean[kVectors], inverse[kVectors];  // of the deviation
};

// Layer normalisation over the channels of x: Ba et al., 2016.
template <class N>
Moments normalise(const float* x, size_t channels, const float* weight, const float* bias, typename N::Right* to) {
  Moments m = {};
  for (size_t c = 0; c < channels; ++c)
    for (size_t v = 0; v < kVectors; ++v) m.mean[v] += at(x + c * kTokens + v * kWidth);
  for (Vector& mean : m.mean) mean /= static_cast<float>(channels);
  Vector square[kVectors] = {};
  for (size_t c = 0; c < channels; ++c)
    for (size_t v = 0; v < kVectors; ++v) {
      const Vector apart = at(x + c * kTokens + v * kWidth) - m.mean[v];
      square[v] += apart * apart;
    }
  for (size_t v = 0; v < kVectors; ++v) {
    const Vector variance = square[v] / static_cast<float>(channels) + kEpsilon;
    for (size_t i = 0; i < kWidth; ++i) m.inverse[v][i] = 1.0f / std::sqrt(variance[i]);
  }
  for (size_t c = 0; c < channels; c += 2)
    for (size_t v = 0; v < kVectors; ++v) {
      const float* const from = x + c * kTokens + v * kWidth;
      N::put(to, kTokens, c, v * kWidth, (at(from) - m.mean[v]) * m.inverse[v] * weight[c] + bias[c],
             (at(from + kTokens) - m.mean[v]) * m.inverse[v] * weight[c + 1] + bias[c + 1]);
    }
  return m;
}

// Adds to grad_x what comes back through the normalisation of x.
inline void normalise_back(const float* grad, const float* x, const Moments& m, size_t channels, const float* weight,
                           float* grad_x) {
  Vector mean[kVectors] = {}, along[kVectors] = {};
  for (size_t c = 0; c < channels; ++c)
    for (size_t v = 0; v < kVectors; ++v) {
      const Vector g = at(grad + c * kTokens + v * kWidth) * weight[c];
      mean[v] += g;
      along[v] += g * (at(x + c * kTokens + v * kWidth) - m.mean[v]);
    }
  for (size_t v = 0; v < kVectors; ++v) {
    mean[v] /= static_cast<float>(channels);
    along[v] *= m.inverse[v] * m.inverse[v] / static_cast<float>(channels);
  }
  for (size_t c = 0; c < channels; ++c)
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t i = c * kTokens + v * kWidth;
      at(grad_x + i) += m.inverse[v] * (at(grad + i) * weight[c] - mean[v] - (at(x + i) - m.mean[v]) * along[v]);
    }
}

// Adds what the weight and the bias of the normalisation get to `sums`, (2, channels, kWidth), whose rows are yet to be
// summed.
inline void norm_grads(const float* grad, const float* x, const Moments& m, size_t channels, float* sums) {
  for (size_t c = 0; c < channels; ++c) {
    Vector weight = {}, bias = {};
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t i = c * kTokens + v * kWidth;
      weight += at(grad + i) * (at(x + i) - m.mean[v]) * m.inverse[v];
      bias += at(grad + i);
    }
    at(sums + c * kWidth) += weight;
    at(sums + (channels + c) * kWidth) += bias;
  }
}

// The low-rank rows of x, which has room for them; low gets their values before their gain.
template <class N>
void apply_thin(const Side<N>& side, typename N::Right* x, float* low) {
  if (!side.extra) return;
  N::multiply(side.thin.get(), side.inputs, x, side.inputs, low, side.ranks, kTokens, nullptr);
  for (size_t k = 0; k < side.ranks && k < side.extra; k += 2)
    for (size_t t = 0; t < kTokens; t += kWidth)
      N::put(x, kTokens, side.inputs + k, t, at(low + k * kTokens + t) * side.gain[k],
             at(low + (k + 1) * kTokens + t) * side.gain[k + 1]);
}

// y (outputs, tokens) = side x + start, where x has its low-rank rows.
template <class N>
void apply_wide(const Side<N>& side, const typename N::Right* x, float* y, const float* start) {
  N::multiply(side.wide.get(), side.row(), x, side.row(), y, side.outputs, kTokens, start);
}

// Both.
template <class N>
void apply(const Side<N>& side, typename N::Right* x, float* low, float* y, const float* start) {
  apply_thin(side, x, low);
  apply_wide(side, x, y, start);
}

// The GELU (Hendrycks and Gimpel, 2016) and, with Phi(x) as `share`, its slope.
template <class N>
INLINE Vector gelu(Vector x) {
  return x * normal_share<N>(x);
}

template <class N>
INLINE Vector gelu_slope(Vector x, Vector share) {
  return share + x * exp<N>(-0.5f * x * x) * 0.39894228f;
}

}  // namespace
}  // namespace lora_comp::swin::SIMD_TARGET
SIMD_END
#endif
