#include <array>
#include <string>

#include "block.hpp"

namespace lora_comp {
namespace {

// The block's arguments, layer by layer, under names such as "fc1_weight".
class Reader {
 public:
  Reader(const SwinBlockTensors& a, const SwinBlockCall& call) {
    arguments.any("x", call.x, 4, 4);
    arguments.any("position", a.position, 3, 3);
    arguments.any("fc1_weight", a.fc1.weight, 2, 2);
    for (const SwinLayerTensors* layer : {&a.qkv, &a.proj, &a.fc1, &a.fc2})
      block.own = block.own || layer->u.shape.dimensions == 3;
    const Shape& x = call.x.shape;
    const size_t dim = x[3], hidden = a.fc1.weight.shape[0], heads = a.position.shape[0];
    demand(call.window > 0 && call.shift < call.window, "shift must be below window");
    block.batch = x[0], block.windows = {x[1], x[2], call.window, call.shift}, block.dim = dim, block.heads = heads;
    block.norm1_weight = arguments.floats("norm1_weight", a.norm1_weight, {dim});
    block.norm1_bias = arguments.floats("norm1_bias", a.norm1_bias, {dim});
    block.norm2_weight = arguments.floats("norm2_weight", a.norm2_weight, {dim});
    block.norm2_bias = arguments.floats("norm2_bias", a.norm2_bias, {dim});
    const size_t tokens = call.window * call.window;
    block.position = arguments.floats("position", a.position, {heads, tokens, tokens});
    block.qkv = layer("qkv_", a.qkv, dim, 3 * dim);
    block.proj = layer("proj_", a.proj, dim, dim);
    block.fc1 = layer("fc1_", a.fc1, dim, hidden);
    block.fc2 = layer("fc2_", a.fc2, hidden, dim);
    static_cast<void>(arguments.floats("x", call.x, x));
    const Shape products = {x[0], block.windows.rows(), block.windows.columns(), 48 * heads + dim + hidden, 64};
    kept = arguments.find_floats("kept", call.kept, products);
    if (call.prompts.given) block.prompts = prompts(call);
  }

  SwinLayerGrad grad(const std::string& layer, const SwinLayerTensors& to, const SwinLayerTensors& of) const {
    const auto find = [&](const char* name, const Tensor& grad, const Tensor& t) {
      return arguments.find_floats(("grad_" + layer + name).c_str(), grad, t.shape);
    };
    return {find("u", to.u, of.u), find("s", to.s, of.s), find("v", to.v, of.v), find("weight", to.weight, of.weight),
            find("bias", to.bias, of.bias)};
  }

  const Arguments arguments{false};
  SwinBlock block{};
  float* kept;

 private:
  SwinPrompts prompts(const SwinBlockCall& call) const {
    arguments.any("prompts", call.prompts, 2, 4);
    const Windows& a = block.windows;
    const Shape& shape = call.prompts.shape;
    if (shape.dimensions == 2)
      return {arguments.floats("prompts", call.prompts, {shape[0], block.dim}), shape[0], 0, false};
    demand(shape.dimensions == 4 && shape[1] > 0 && a.height > 0 && a.height % shape[1] == 0,
           "prompts must divide the sides of x");
    const size_t d = a.height / shape[1], side = a.window / d;
    demand(a.window % d == 0 && a.shift % d == 0 && a.width % d == 0, "prompts must divide window and shift");
    const Shape map = {block.batch, shape[1], a.width / d, block.dim};
    return {arguments.floats("prompts", call.prompts, map), side * side, d, call.published_mask};
  }

  SwinLayer layer(const std::string& layer, const SwinLayerTensors& a, size_t in, size_t out) const {
    const auto floats = [&](const char* name, const Tensor& t, const Shape& shape) {
      return arguments.floats((layer + name).c_str(), t, shape);
    };
    SwinLayer to{
        floats("weight", a.weight, {out, in}), floats("bias", a.bias, {out}), nullptr, nullptr, nullptr, in, out, 0};
    if (!a.u.given && !a.s.given && !a.v.given) return to;
    arguments.any((layer + "s").c_str(), a.s, 1, 2);
    to.rank = a.s.shape.last();
    const auto each = [&](size_t rows) { return block.own ? Shape{block.batch, rows, to.rank} : Shape{rows, to.rank}; };
    to.u = floats("u", a.u, each(out));
    to.s = floats("s", a.s, block.own ? Shape{block.batch, to.rank} : Shape{to.rank});
    to.v = floats("v", a.v, each(in));
    return to;
  }
};

}  // namespace

void swin_block_forward(const SwinBlockTensors& tensors, const SwinBlockCall& call, const Tensor& y, unsigned threads) {
  const Reader a(tensors, call);
  float* const to = a.arguments.floats("y", y, call.x.shape);
  swin_block_forward(a.block, static_cast<const float*>(call.x.data), to, a.kept, call.half, threads);
}

void swin_block_backward(const SwinBlockTensors& tensors, const SwinBlockCall& call, const Tensor& grad_y,
                         const Tensor& grad_x, const SwinBlockTensors& grads, const Tensor& grad_prompts,
                         unsigned threads) {
  const Reader a(tensors, call);
  const auto find = [&](const char* name, const Tensor& grad, const Tensor& of) {
    return a.arguments.find_floats(name, grad, of.shape);
  };
  const SwinBlockGrad to{a.grad("qkv_", grads.qkv, tensors.qkv),
                         a.grad("proj_", grads.proj, tensors.proj),
                         a.grad("fc1_", grads.fc1, tensors.fc1),
                         a.grad("fc2_", grads.fc2, tensors.fc2),
                         find("grad_norm1_weight", grads.norm1_weight, tensors.norm1_weight),
                         find("grad_norm1_bias", grads.norm1_bias, tensors.norm1_bias),
                         find("grad_norm2_weight", grads.norm2_weight, tensors.norm2_weight),
                         find("grad_norm2_bias", grads.norm2_bias, tensors.norm2_bias),
                         find("grad_position", grads.position, tensors.position),
                         find("grad_prompts", grad_prompts, call.prompts)};
  for (const float* dense : {to.norm1_weight, to.norm1_bias, to.norm2_weight, to.norm2_bias, to.qkv.weight, to.qkv.bias,
                             to.proj.weight, to.proj.bias, to.fc1.weight, to.fc1.bias, to.fc2.weight, to.fc2.bias})
    demand((dense != nullptr) == to.dense(), "grads of the block's own parameters must all be given, or none");
  swin_block_backward(a.block, static_cast<const float*>(call.x.data),
                      a.arguments.floats("grad_y", grad_y, call.x.shape),
                      a.arguments.find_floats("grad_x", grad_x, call.x.shape), a.kept, to, call.half, threads);
}

}  // namespace lora_comp
