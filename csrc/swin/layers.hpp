// The layers of a Swin block on the tokens of one window, forward and backward. Activations are float32, a row of
// tokens for each channel.
#pragma once

#include <cmath>

#include "pack.hpp"

namespace lora_comp::swin {
namespace {

constexpr size_t kVectors = kTokens / kWidth;
constexpr float kEpsilon = 1e-5f;  // of the normalisation

// (channels, tokens) to a Right.
template <class N>
void to_right(const float* rows, size_t channels, typename N::Right* to) {
  for (size_t c = 0; c < channels; c += 2)
    for (size_t t = 0; t < kTokens; t += kWidth)
      N::put(to, kTokens, c, t, at(rows + c * kTokens + t), at(rows + (c + 1) * kTokens + t));
}

template <class N>
void rows_to_left(const float* rows, size_t channels, typename N::Left* to) {
  for (size_t i = 0; i < channels * kTokens; i += kWidth) N::put(to + i, at(rows + i));
}

// The same without a copy where the numbers are the operand already, which `room` is for otherwise.
template <class N>
const typename N::Right* as_right(const float* rows, size_t channels, typename N::Right* room) {
  if constexpr (N::kPack == 1) return rows;
  to_right<N>(rows, channels, room);
  return room;
}

template <class N>
const typename N::Left* as_left(const float* rows, size_t channels, typename N::Left* room) {
  if constexpr (N::kPack == 1) return rows;
  rows_to_left<N>(rows, channels, room);
  return room;
}

// The first rows of a Right as a Left.
template <class N>
void to_left(const typename N::Right* from, size_t channels, typename N::Left* to) {
  for (size_t c = 0; c < channels; c += 2)
    for (size_t t = 0; t < kTokens; t += kWidth)
      N::take(from, kTokens, c, t, to + c * kTokens + t, to + (c + 1) * kTokens + t);
}

inline void add(const float* from, size_t size, float* to) {
  for (size_t i = 0; i < size; i += kWidth) at(to + i) += at(from + i);
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
  return x * N::normal_share(x);
}

template <class N>
INLINE Vector gelu_slope(Vector x, Vector share) {
  return share + x * N::exp(-0.5f * x * x) * 0.39894228f;
}

}  // namespace
}  // namespace lora_comp::swin
