// Generalised divisive normalisation, y = x / sqrt(beta + gamma x^2), and its inverse, y = x sqrt(beta + gamma x^2):
// Balle et al., ICLR 2017. 64 pixels at a time in the first cache; the backward pass computes the norm again.
#pragma once

#include <cstddef>

#include "../tensor.hpp"

namespace lora_comp {

struct Gdn {
  size_t pixels, channels;    // channels: a multiple of 32
  const float *beta, *gamma;  // (channels), above 0; (channels, channels), of output and input, none below 0
  bool inverse;
  bool bfloat16;  // the type of x, y and their gradients, else float32; then so are products, where there are any
};

// x, y: (pixels, channels). Throws std::invalid_argument for other numbers of channels.
void gdn_forward(const Gdn&, const void* x, void* y, unsigned threads);

// Writes grad_x, and adds to grad_beta and grad_gamma, unless both are null.
void gdn_backward(const Gdn&, const void* x, const void* grad_y, void* grad_x, float* grad_beta, float* grad_gamma,
                  unsigned threads);

// The entries: the same of tensors, whose types and shapes are compared first. x (..., channels), float32 or bfloat16.
struct GdnTensors {
  Tensor x, beta, gamma;
  bool inverse;
};
void gdn_forward(const GdnTensors&, const Tensor& y, unsigned threads);
void gdn_backward(const GdnTensors&, const Tensor& grad_y, const Tensor& grad_x, const Tensor& grad_beta,
                  const Tensor& grad_gamma, unsigned threads);

}  // namespace lora_comp
