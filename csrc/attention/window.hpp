// Where the tokens of a window lie in a cyclically shifted map, and which of them see each other (Liu et al., "Swin
// Transformer", ICCV 2021, figure 4).
#pragma once

#include <cstddef>
#include <cstdint>

namespace lora_comp {

constexpr float kMasked = -100.0f;  // added to the logit of a forbidden pair, as in the definition

struct Windows {
  size_t height, width, window, shift;

  size_t rows() const { return (height + window - 1) / window; }
  size_t columns() const { return (width + window - 1) / window; }
};

#ifdef __CUDACC__
#define LORA_COMP_ANYWHERE __host__ __device__
#else
#define LORA_COMP_ANYWHERE
#endif

struct Token {
  ptrdiff_t place;  // among those of all maps, or -1 outside
  int32_t region;

  // The t-th of the window at (top, left) of the shifted map.
  LORA_COMP_ANYWHERE Token(const Windows& a, size_t batch, size_t top, size_t left, size_t t) {
    const size_t padded_height = (a.height + a.window - 1) / a.window * a.window;
    const size_t padded_width = (a.width + a.window - 1) / a.window * a.window;
    const size_t shifted_y = top + t / a.window, shifted_x = left + t % a.window;
    const size_t y = (shifted_y + a.shift) % padded_height, x = (shifted_x + a.shift) % padded_width;
    place = y < a.height && x < a.width ? static_cast<ptrdiff_t>((batch * a.height + y) * a.width + x) : -1;
    region = number(shifted_y, y, a.height, padded_height, a) * 4 + number(shifted_x, x, a.width, padded_width, a);
  }

 private:
  LORA_COMP_ANYWHERE static int32_t number(size_t shifted, size_t own, size_t size, size_t padded, const Windows& a) {
    if (own >= size) return 3;
    if (a.shift == 0 || shifted + a.window < padded) return 0;
    return shifted + a.shift < padded ? 1 : 2;
  }
};

template <size_t kTokens>
struct Window {
  ptrdiff_t place[kTokens];
  int32_t region[kTokens];
  bool mixed;

  Window(const Windows& a, size_t batch, size_t top, size_t left) : mixed(false) {
    for (size_t t = 0; t < kTokens; ++t) {
      const Token token(a, batch, top, left, t);
      place[t] = token.place;
      region[t] = token.region;
      mixed |= region[t] != region[0];
    }
  }
};

}  // namespace lora_comp
