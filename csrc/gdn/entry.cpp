#include "gdn.hpp"

namespace lora_comp {
namespace {

Gdn checked(const Arguments& arguments, const GdnTensors& a) {
  arguments.any("x", a.x, 1);
  const size_t channels = a.x.shape.last();
  demand(channels > 0 && channels % 32 == 0, "x must have channels in multiples of 32");
  return {a.x.shape.count() / channels,
          channels,
          arguments.floats("beta", a.beta, {channels}),
          arguments.floats("gamma", a.gamma, {channels, channels}),
          a.inverse,
          a.x.half()};
}

}  // namespace

void gdn_forward(const GdnTensors& a, const Tensor& y, unsigned threads) {
  const Arguments arguments(false);
  const Gdn layer = checked(arguments, a);
  gdn_forward(layer, a.x.data, arguments.get("y", y, a.x.shape, a.x.type), threads);
}

void gdn_backward(const GdnTensors& a, const Tensor& grad_y, const Tensor& grad_x, const Tensor& grad_beta,
                  const Tensor& grad_gamma, unsigned threads) {
  const Arguments arguments(false);
  const Gdn layer = checked(arguments, a);
  demand(grad_beta.given == grad_gamma.given, "grad_beta must be given with grad_gamma, or neither");
  gdn_backward(layer, a.x.data, arguments.get("grad_y", grad_y, a.x.shape, a.x.type),
               arguments.get("grad_x", grad_x, a.x.shape, a.x.type),
               arguments.find_floats("grad_beta", grad_beta, a.beta.shape),
               arguments.find_floats("grad_gamma", grad_gamma, a.gamma.shape), threads);
}

}  // namespace lora_comp
