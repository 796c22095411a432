#include "window_attention.hpp"

namespace lora_comp {
namespace {

WindowAttention checked(const Arguments& arguments, const WindowAttentionTensors& a) {
  arguments.any("qkv", a.qkv, 6, 6);
  const Shape& qkv = a.qkv.shape;
  demand(qkv[3] == 3, "qkv must have shape (B, H, W, 3, heads, dim)");
  demand(a.window > 0 && a.shift < a.window, "shift must be below window");
  const size_t tokens = a.window * a.window;
  return {a.qkv.data, arguments.floats("bias", a.bias, {qkv[4], tokens, tokens}),
          qkv[0],     qkv[1],
          qkv[2],     qkv[4],
          qkv[5],     a.window,
          a.shift};
}

Shape shape_of_output(const WindowAttention& a) { return {a.batch, a.height, a.width, a.heads, a.dim}; }

}  // namespace

void window_attention_forward(const WindowAttentionTensors& tensors, const Tensor& out, unsigned threads,
                              std::optional<uintptr_t> stream) {
  const Arguments arguments(stream.has_value());
  const WindowAttention a = checked(arguments, tensors);
  void* const to = arguments.get("out", out, shape_of_output(a), tensors.qkv.type);
  if (stream) return window_attention_forward_cuda(a, to, tensors.qkv.half(), *stream);
  demand(!tensors.qkv.half(), "qkv must be float32 on the CPU");
  window_attention_forward(a, static_cast<float*>(to), threads);
}

void window_attention_backward(const WindowAttentionTensors& tensors, const Tensor& grad_out, const Tensor& grad_qkv,
                               const Tensor& grad_bias, unsigned threads, std::optional<uintptr_t> stream) {
  const Arguments arguments(stream.has_value());
  const WindowAttention a = checked(arguments, tensors);
  const void* const from = arguments.get("grad_out", grad_out, shape_of_output(a), tensors.qkv.type);
  void* const to = arguments.get("grad_qkv", grad_qkv, tensors.qkv.shape, tensors.qkv.type);
  float* const of_bias = arguments.find_floats("grad_bias", grad_bias, tensors.bias.shape);
  if (stream) return window_attention_backward_cuda(a, from, to, of_bias, tensors.qkv.half(), *stream);
  demand(!tensors.qkv.half(), "qkv must be float32 on the CPU");
  window_attention_backward(a, static_cast<const float*>(from), static_cast<float*>(to), of_bias, threads);
}

}  // namespace lora_comp
