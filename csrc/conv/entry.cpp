#include "conv.hpp"

namespace lora_comp {

void conv3x3(const Conv3x3Tensors& a, const Tensor& y, unsigned threads) {
  const Arguments arguments(false);
  arguments.any("x", a.x, 4, 4);
  arguments.any("bias", a.bias, 1, 1);
  const Shape& x = a.x.shape;
  const size_t out = a.bias.shape.last();
  const float* const from = arguments.floats("x", a.x, x);
  if (a.more.given) arguments.any("more", a.more, 4, 4);
  const size_t more = a.more.given ? a.more.shape.last() : 0;
  const float* const beside = arguments.find_floats("more", a.more, {x[0], x[1], x[2], more});
  const float* const weight = arguments.floats("weight", a.weight, {6, 6, x[3] + more, out});
  const Conv3x3 layer{x[0], x[1], x[2], x[3], more, out, weight, arguments.floats("bias", a.bias, {out}), a.relu};
  conv3x3(layer, from, beside, arguments.floats("y", y, {x[0], x[1], x[2], out}), threads);
}

}  // namespace lora_comp
