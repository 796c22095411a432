// Latents under a Gaussian conditional model (Minnen et al., NeurIPS 2018): rounded about their means, coded under the
// table of their scale, in one pass over the arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "rans.hpp"

namespace lora_comp::rans {

// What the hyper synthesis says of n latents. Table t serves the scales in (bounds[t - 1], bounds[t]]; there is one
// table more than there are bounds.
struct Gaussians {
  const double* means;
  const double* scales;
  size_t n;
  const double* bounds;
  size_t bounds_count;
};

// A latent whose scale lies so near to a bound that another machine might take the other side, and its table here.
struct Hint {
  size_t position;
  int32_t table;
};

// symbols[i] = round(y[i] - means[i]), half to even. Appends to hints, in order, the latents whose scale lies within
// `margin`, relative, of a bound. Throws std::invalid_argument for a value that is not finite or beyond int32.
std::string encode_latents(const float* y, const Gaussians& model, const Tables& tables, double margin,
                           int32_t* symbols, std::vector<Hint>& hints, const Engine& engine = {});

// y[i] = means[i] + symbols[i], with the tables of the hints where there are any. Throws StreamError.
void decode_latents(const uint8_t* data, size_t size, const Gaussians& model, const Tables& tables,
                    const std::vector<Hint>& hints, int32_t* symbols, float* y, const Engine& engine = {});

}  // namespace lora_comp::rans
