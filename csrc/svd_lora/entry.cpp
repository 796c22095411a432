#include "svd_lora.hpp"

namespace lora_comp {
namespace {

// The shape of x with another number of channels.
Shape with_last(Shape shape, size_t size) {
  shape.sizes[shape.dimensions - 1] = size;
  return shape;
}

LowRankLinear checked(const Arguments& arguments, const LowRankTensors& a) {
  arguments.any("x", a.x, 1);
  arguments.any("u", a.u, 2, 3);
  const bool batched = a.u.shape.dimensions == 3;
  const size_t in = a.x.shape.last(), out = a.u.shape[batched], rank = a.u.shape.last();
  demand(rank > 0, "u must have a rank of at least 1");
  demand(!batched || (a.x.shape.dimensions > 1 && a.x.shape[0] == a.u.shape[0]),
         "x must have an entry an adapter of u");
  demand(!a.bias.given || a.weight.given, "bias must be left out, as weight is");
  demand(!a.weight.given || a.x.half() == a.x.gpu, "weight must be left out in bfloat16 on the CPU, float32 on a GPU");
  const size_t batch = batched ? a.u.shape[0] : 1;
  const auto each = [&](size_t rows) { return batched ? Shape{batch, rows, rank} : Shape{rows, rank}; };
  LowRankLinear layer{};
  layer.x = a.x.data;
  layer.weight = arguments.find("weight", a.weight, {out, in}, a.x.type);
  layer.bias = arguments.find("bias", a.bias, {out}, a.x.type);
  layer.u = arguments.floats("u", a.u, each(out));
  layer.s = arguments.floats("s", a.s, batched ? Shape{batch, rank} : Shape{rank});
  layer.v = arguments.floats("v", a.v, each(in));
  layer.batch = batch, layer.in = in, layer.out = out, layer.rank = rank;
  layer.n = 1;
  for (size_t i = batched; i + 1 < a.x.shape.dimensions; ++i) layer.n *= a.x.shape[i];
  layer.scale = a.scale, layer.bfloat16 = a.x.half();
  return layer;
}

Shape shape_of_projected(const LowRankLinear& a) { return {a.batch, a.n, low_rank_padded(a.rank)}; }

}  // namespace

void low_rank_linear_forward(const LowRankTensors& tensors, const Tensor& y, const Tensor& t, unsigned threads,
                             std::optional<uintptr_t> stream) {
  const Arguments arguments(stream.has_value());
  const LowRankLinear a = checked(arguments, tensors);
  void* const to = arguments.get("y", y, with_last(tensors.x.shape, a.out), tensors.x.type);
  float* const projected = arguments.floats("t", t, shape_of_projected(a));
  if (stream) return low_rank_linear_forward_cuda(a, to, projected, *stream);
  low_rank_linear_forward(a, to, projected, threads);
}

void low_rank_linear_backward(const LowRankTensors& tensors, const Tensor& grad_y, const Tensor& t, const Tensor& space,
                              const LowRankGradientTensors& grads, unsigned threads, std::optional<uintptr_t> stream) {
  const Arguments arguments(stream.has_value());
  const LowRankLinear a = checked(arguments, tensors);
  const void* const from = arguments.get("grad_y", grad_y, with_last(tensors.x.shape, a.out), tensors.x.type);
  const float* const projected = arguments.floats("t", t, shape_of_projected(a));
  const LowRankGradients to{arguments.find("grad_x", grads.x, tensors.x.shape, tensors.x.type),
                            arguments.find_floats("grad_u", grads.u, tensors.u.shape),
                            arguments.find_floats("grad_s", grads.s, tensors.s.shape),
                            arguments.find_floats("grad_v", grads.v, tensors.v.shape)};
  if (!stream) return low_rank_linear_backward(a, from, projected, to, threads);
  float* const room = arguments.floats("space", space, {low_rank_space(a.batch, a.n, a.in, a.out, a.rank)});
  low_rank_linear_backward_cuda(a, from, projected, room, to, *stream);
}

}  // namespace lora_comp
