// A whole Swin block, x + attention(norm(x)) and then x + MLP(norm(x)), one window at a time in the second cache. Of
// what lies between its input and its output the forward pass keeps three products for the backward one, or nothing:
// then that computes them again.
// lora_comp/ops/swin_block.py says what it computes.
#pragma once

#include <cstddef>

#include "../attention/window.hpp"
#include "../tensor.hpp"

namespace lora_comp {

// y = W x + U (s * (V^T x)) + b. u, s and v are those of the first image; with `own` the others' follow.
struct SwinLayer {
  const float *weight, *bias;  // (out, in), (out)
  const float *u, *s, *v;      // (out, rank), (rank), (in, rank)
  size_t in, out, rank;        // rank 0: a plain linear layer
};

// Prompts of its windows: vectors of which the layer qkv makes more keys and values (Chen et al., ICCV 2023).
struct SwinPrompts {
  const float* x = nullptr;  // (count, dim), the same in every window; or a map (batch, height / spacing, ., dim)
  size_t count = 0;          // of a window, at most kMostPrompts
  size_t spacing = 0;        // tokens to a prompt of the map along each side; 0: no map
  bool published = false;    // of a map of spacing 2: who sees whom in shifted windows as in the published code

  bool everywhere() const { return spacing == 0; }
  Windows windows(const Windows& a) const {
    if (everywhere()) return a;
    return {a.height / spacing, a.width / spacing, a.window / spacing, a.shift / spacing};
  }
};

constexpr size_t kMostPrompts = 64;

struct SwinBlock {
  size_t batch;
  Windows windows;  // of 8x8
  size_t dim, heads;
  const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;  // (dim)
  const float* position;                                               // (heads, tokens, tokens): head, key, query
  SwinLayer qkv, proj, fc1, fc2;
  bool own;               // every image of the batch has its own u, s and v
  SwinPrompts prompts{};  // only with layers that are all plain
};

// Sums are added to what stands here; null for what is not wanted.
struct SwinLayerGrad {
  float *u, *s, *v;  // one array for each image with `own`; those of u and v without their factor s
  float *weight, *bias;
};

struct SwinBlockGrad {
  SwinLayerGrad qkv, proj, fc1, fc2;
  float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias, *position;
  float* prompts = nullptr;  // those of a map are written, not added to

  bool dense() const { return position; }  // these five are wanted, and all weights and biases above; or none of them
};

// Whether the machine multiplies in bfloat16.
bool swin_block_half_available();

// x, y: (batch, height, width, dim). half: products of bfloat16 numbers. Throws std::invalid_argument for a block that
// the kernels do not know, or for `half` on a machine without it. grad_x may be null.
// kept: null, or of each window (48 heads + dim + hidden, 64), written by the forward pass for the backward one.
void swin_block_forward(const SwinBlock&, const float* x, float* y, float* kept, bool half, unsigned threads);
void swin_block_backward(const SwinBlock&, const float* x, const float* grad_y, float* grad_x, float* kept,
                         const SwinBlockGrad&, bool half, unsigned threads);

// The entries: the same of tensors, whose types and shapes are compared first. u, s and v of a layer are given together
// or left out; of gradients any may be left out.
struct SwinLayerTensors {
  Tensor weight, bias, u, s, v;
};
struct SwinBlockTensors {
  Tensor norm1_weight, norm1_bias, norm2_weight, norm2_bias, position;
  SwinLayerTensors qkv, proj, fc1, fc2;
};
struct SwinBlockCall {
  Tensor x, kept;  // kept may be left out
  size_t window, shift;
  bool half;
  Tensor prompts{};  // (P, dim), or (batch, height / d, width / d, dim); may be left out
  bool published_mask = false;
};
void swin_block_forward(const SwinBlockTensors&, const SwinBlockCall&, const Tensor& y, unsigned threads);
void swin_block_backward(const SwinBlockTensors&, const SwinBlockCall&, const Tensor& grad_y, const Tensor& grad_x,
                         const SwinBlockTensors& grads, const Tensor& grad_prompts, unsigned threads);

}  // namespace lora_comp
