// A convolution of 3x3, stride 1 and padding 1, with a bias and a ReLU or without, in a quarter of the multiplications:
// Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(4x4, 3x3). A piece of 4x4 outputs
// is computed from 6x6 inputs in a domain of 36 products.
#pragma once

#include <cstddef>

#include "../tensor.hpp"

namespace lora_comp {

struct Conv3x3 {
  size_t batch, height, width;
  size_t in, more, out;  // channels in multiples of 16, more: of a second map, after those of the first
  const float* weight;   // (6, 6, in + more, out): G w G^T
  const float* bias;     // (out)
  bool relu;
};

// x: (batch, height, width, in), more: (batch, height, width, more), y: (batch, height, width, out). Throws
// std::invalid_argument for other channels.
void conv3x3(const Conv3x3&, const float* x, const float* more, float* y, unsigned threads);

// The entry: the same of tensors, whose types and shapes are compared first.
struct Conv3x3Tensors {
  Tensor x, more, weight, bias;  // more may be left out
  bool relu;
};
void conv3x3(const Conv3x3Tensors&, const Tensor& y, unsigned threads);

}  // namespace lora_comp
