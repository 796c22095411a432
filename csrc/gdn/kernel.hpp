// The layer on tiles of 64 pixels.
//
// A pixel's channels lie together, so x^2 is the left matrix of the product as it stands, and gamma transposed the
// right one. The columns of a right matrix and of a product are in panels of 64 channels, the last one of 32 where that
// is left: panel after panel, each (rows, width).
#if defined(LORA_COMP_GDN_KERNEL) == defined(SIMD_TOGGLE)
#ifdef LORA_COMP_GDN_KERNEL
#undef LORA_COMP_GDN_KERNEL
#else
#define LORA_COMP_GDN_KERNEL
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../parallel.hpp"
#include "../simd/buffer.hpp"
#include "../simd/product.hpp"
#include "run.hpp"

SIMD_BEGIN
namespace lora_comp::gdn::SIMD_TARGET {
namespace {

using namespace simd::SIMD_TARGET;
using simd::Buffer;

constexpr size_t kPixels = 64;  // pixels of a tile

// 1 / sqrt(x) of a normal number above 0, to two units in the last place: Newton's iteration from a linear function of
// the logarithm.
INLINE Vector inverse_root(Vector x) {
  Vector r = same_bits<Vector>(0x5f375a86u - (same_bits<Words>(x) >> 1));
  for (int i = 0; i < 3; ++i) r = r * (1.5f - 0.5f * x * r * r);
  return r;
}

// f(first channel, channels) of each panel.
template <class F>
INLINE void panels(size_t channels, const F& f) {
  for (size_t c = 0; c < channels; c += 64) f(c, std::min<size_t>(64, channels - c));
}

// f(i, place, channel) of every vector of channels of every pixel of a tile: i of a tile, place of a product.
template <class F>
INLINE void each(size_t channels, const F& f) {
  panels(channels, [&](size_t c, size_t width) {
    for (size_t t = 0; t < kPixels; ++t)
      for (size_t j = 0; j < width; j += kWidth) f(t * channels + c + j, kPixels * c + t * width + j, c + j);
  });
}

// c = a b, or c += a b: a (rows, inner), c (rows, channels).
template <class N>
void multiply(const typename N::Left* a, const typename N::Right* b, size_t inner, float* c, size_t rows,
              size_t channels, bool add = false) {
  panels(channels, [&](size_t first, size_t width) {
    float* const to = c + rows * first;
    N::multiply(a, inner, b + inner / N::kPack * first, inner, to, rows, width, add ? to : nullptr);
  });
}

// (rows, channels) to a right matrix; f(row, channel) gives a vector of its numbers.
template <class N, class F>
INLINE void to_right(size_t rows, size_t channels, typename N::Right* to, const F& f) {
  panels(channels, [&](size_t c, size_t width) {
    for (size_t r = 0; r < rows; r += 2)
      for (size_t j = 0; j < width; j += kWidth)
        N::put(to + rows / N::kPack * c, width, r, j, f(r, c + j), f(r + 1, c + j));
  });
}

template <class N>
struct Packed {
  size_t channels;
  bool inverse;
  Buffer<float> beta;
  Buffer<typename N::Right> gamma, transposed;  // transposed: what forward multiplies by

  explicit Packed(const Gdn& layer)
      : channels(layer.channels),
        inverse(layer.inverse),
        beta(channels),
        gamma(channels * channels / N::kPack),
        transposed(channels * channels / N::kPack) {
    std::copy_n(layer.beta, channels, beta.get());
    to_right<N>(channels, channels, gamma.get(),
                [&](size_t r, size_t c) { return load(layer.gamma + r * channels + c); });
    to_right<N>(channels, channels, transposed.get(), [&](size_t r, size_t c) {
      Vector x;
      for (size_t i = 0; i < kWidth; ++i) x[i] = layer.gamma[(c + i) * channels + r];
      return x;
    });
  }
};

// The gradients of beta and gamma over their common factor.
struct Sums {
  Buffer<float> beta, gamma;  // gamma in panels
  explicit Sums(size_t channels) : beta(channels), gamma(channels * channels) {}
};

template <class N, class T>
struct Scratch {
  Buffer<T> x, grad, out;  // a tile that the image does not fill
  Buffer<typename N::Left> squares, slopes;
  Buffer<float> norm, back;
  Buffer<typename N::Left> columns;  // the rest for gradients of beta and gamma alone
  Buffer<typename N::Right> pixels, turned;

  Scratch(size_t channels, bool back, bool sums)
      : x(channels * kPixels),
        grad(channels * kPixels),
        out(channels * kPixels),
        squares(channels * kPixels),
        slopes(back ? channels * kPixels : 0),
        norm(channels * kPixels),
        back(back ? channels * kPixels : 0),
        columns(sums ? channels * kPixels : 0),
        pixels(sums ? channels * kPixels / N::kPack : 0),
        turned(sums ? channels * kPixels / N::kPack : 0) {}
};

// gamma x^2 of a tile: s.norm.
template <class N, class T>
void add_squares(const Packed<N>& p, const T* x, Scratch<N, T>& s) {
  for (size_t i = 0; i < kPixels * p.channels; i += kWidth) {
    const Vector value = load(x + i);
    N::put(s.squares.get() + i, value * value);
  }
  multiply<N>(s.squares.get(), p.transposed.get(), p.channels, s.norm.get(), kPixels, p.channels);
}

template <class N, class T>
void forward_tile(const Packed<N>& p, const T* x, T* y, Scratch<N, T>& s) {
  add_squares(p, x, s);
  each(p.channels, [&](size_t i, size_t place, size_t c) {
    const Vector norm = at(s.norm.get() + place) + at(p.beta.get() + c), root = inverse_root(norm);
    store(y + i, load(x + i) * (p.inverse ? norm * root : root));
  });
}

// What the loss gains with the norm, over +-1/2: s.slopes; what it gains with the x of the numerator: s.norm.
template <class N, class T>
void find_slopes(const Packed<N>& p, const T* x, const T* grad_y, Scratch<N, T>& s, Sums* sums) {
  each(p.channels, [&](size_t i, size_t place, size_t c) {
    float* const norm = s.norm.get() + place;
    const Vector all = at(norm) + at(p.beta.get() + c), root = inverse_root(all), grad = load(grad_y + i);
    const Vector along = grad * load(x + i) * (p.inverse ? root : root * root * root);
    at(norm) = grad * (p.inverse ? all * root : root);
    N::put(s.slopes.get() + i, along);
    if (sums) at(sums->beta.get() + c) += along;
  });
}

// sums.gamma += slopes^T x^2.
template <class N, class T>
void add_gamma(const Packed<N>& p, const T* x, Scratch<N, T>& s, Sums& sums) {
  transpose_words<N>(words(s.slopes.get()), kPixels, p.channels / N::kPack, words(s.turned.get()));
  to_left<N>(s.turned.get(), p.channels, kPixels, s.columns.get());
  to_right<N>(kPixels, p.channels, s.pixels.get(), [&](size_t t, size_t c) {
    const Vector value = load(x + t * p.channels + c);
    return value * value;
  });
  multiply<N>(s.columns.get(), s.pixels.get(), kPixels, sums.gamma.get(), p.channels, p.channels, true);
}

template <class N, class T>
void backward_tile(const Packed<N>& p, const T* x, const T* grad_y, T* grad_x, Scratch<N, T>& s, Sums* sums) {
  add_squares(p, x, s);
  find_slopes(p, x, grad_y, s, sums);
  if (sums) add_gamma(p, x, s, *sums);
  multiply<N>(s.slopes.get(), p.gamma.get(), p.channels, s.back.get(), kPixels, p.channels);
  const float sign = p.inverse ? 1.0f : -1.0f;
  each(p.channels, [&](size_t i, size_t place, size_t) {
    store(grad_x + i, at(s.norm.get() + place) + sign * load(x + i) * at(s.back.get() + place));
  });
}

template <class N, class T>
void run_tiles(const Packed<N>& p, const Job& job, size_t first, size_t last, Sums* sums) {
  [[maybe_unused]] const typename N::Session session{};
  Scratch<N, T> s(p.channels, job.grad_y != nullptr, sums != nullptr);
  for (size_t tile = first; tile < last; ++tile) {
    const size_t start = tile * kPixels * p.channels, all = kPixels * p.channels;
    const size_t size = std::min(all, job.layer.pixels * p.channels - start);
    const T *x = static_cast<const T*>(job.x) + start, *grad = static_cast<const T*>(job.grad_y);
    T* const out = static_cast<T*>(job.out) + start;
    if (grad) grad += start;
    if (size < all) {  // there is one such tile at the most: the rest of these is zero
      x = std::copy_n(x, size, s.x.get()) - size;
      if (grad) grad = std::copy_n(grad, size, s.grad.get()) - size;
    }
    T* const to = size < all ? s.out.get() : out;
    grad ? backward_tile(p, x, grad, to, s, sums) : forward_tile(p, x, to, s);
    if (size < all) std::copy_n(to, size, out);
  }
}

void add_up(const Sums& sums, size_t channels, float factor, float* grad_beta, float* grad_gamma) {
  for (size_t c = 0; c < channels; ++c) grad_beta[c] += factor * sums.beta.get()[c];
  panels(channels, [&](size_t c, size_t width) {
    for (size_t r = 0; r < channels; ++r)
      for (size_t j = 0; j < width; ++j)
        grad_gamma[r * channels + c + j] += factor * sums.gamma.get()[channels * c + r * width + j];
  });
}

template <class N, class T>
void run_all(const Job& job, unsigned threads) {
  const Packed<N> packed(job.layer);
  // As many shares whatever the threads, and their sums added up in order: the same bits with any number of threads.
  const size_t tiles = (job.layer.pixels + kPixels - 1) / kPixels, shares = std::min<size_t>(tiles, 16);
  std::vector<Sums> sums;
  for (size_t i = 0; job.grad_gamma && i < shares; ++i) sums.emplace_back(packed.channels);
  parallel(shares, threads, [&](size_t i) {
    run_tiles<N, T>(packed, job, tiles * i / shares, tiles * (i + 1) / shares, sums.empty() ? nullptr : &sums[i]);
  });
  const float factor = packed.inverse ? 0.5f : -0.5f;
  for (const Sums& share : sums) add_up(share, packed.channels, factor, job.grad_beta, job.grad_gamma);
}

}  // namespace
}  // namespace lora_comp::gdn::SIMD_TARGET
SIMD_END
#endif
