// The CUDA kernels, run by tests/csrc/emulated, against the processor's, which their own tests hold to the definitions:
// in allocations of exactly their size. They say nothing of a GPU's speed, and of its numbers only what the code says.
#include <cmath>
#include <vector>

#include "attention/window_attention.hpp"
#include "check.hpp"
#include "cuda_bf16.h"
#include "svd_lora/svd_lora.hpp"
#include "tables.hpp"

using namespace lora_comp;

namespace {

rans::Random generator{11};

using Floats = std::vector<float>;
using Halves = std::vector<__nv_bfloat16>;

Halves halves(const Floats& values) {
  Halves to;
  for (const float value : values) to.push_back(__float2bfloat16(value));
  return to;
}

Floats floats(const Halves& values) {
  Floats to;
  for (const __nv_bfloat16 value : values) to.push_back(__bfloat162float(value));
  return to;
}

Floats rounded(const Floats& values) { return floats(halves(values)); }

// Within a share of the expected values' size.
void near(const Floats& found, const Floats& expected, double tolerance) {
  CHECK(found.size() == expected.size());
  double apart = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    apart += std::pow(double(found[i]) - expected[i], 2);
    size += std::pow(double(expected[i]), 2);
  }
  CHECK(std::sqrt(apart) <= tolerance * std::sqrt(size) + 1e-6);
}

constexpr double kFloat = 1e-5, kHalf = 1e-2;  // what the kernels promise

void test_window_attention(WindowAttention a) {
  const size_t size = a.batch * a.height * a.width * a.heads * a.dim, tokens = a.window * a.window;
  const Floats qkv = rounded(generator.values(3 * size)), bias = generator.values(a.heads * tokens * tokens);
  const Floats grad_out = rounded(generator.values(size));
  a.qkv = qkv.data();
  a.bias = bias.data();
  Floats out(size), grad(3 * size), grad_bias(bias.size(), 1.0f);
  window_attention_forward(a, out.data(), 1);
  window_attention_backward(a, grad_out.data(), grad.data(), grad_bias.data(), 1);

  Floats same(size), same_grad(3 * size), same_bias(bias.size(), 1.0f);
  window_attention_forward_cuda(a, same.data(), false, 0);
  window_attention_backward_cuda(a, grad_out.data(), same_grad.data(), same_bias.data(), false, 0);
  near(same, out, kFloat);
  near(same_grad, grad, kFloat);
  near(same_bias, grad_bias, kFloat);

  const Halves half_qkv = halves(qkv), half_grad_out = halves(grad_out);
  Halves half(size), half_grad(3 * size);
  a.qkv = half_qkv.data();
  window_attention_forward_cuda(a, half.data(), true, 0);
  window_attention_backward_cuda(a, half_grad_out.data(), half_grad.data(), nullptr, true, 0);
  near(floats(half), out, kHalf);
  near(floats(half_grad), grad, kHalf);
}

struct Problem {
  size_t batch, n, in, out, rank;
  bool bias;
  Floats x, weight, b, u, s, v, grad_y;

  Problem(size_t batch, size_t n, size_t in, size_t out, size_t rank, bool bias)
      : batch(batch),
        n(n),
        in(in),
        out(out),
        rank(rank),
        bias(bias),
        x(rounded(generator.values(batch * n * in))),
        weight(rounded(generator.values(out * in))),
        b(rounded(generator.values(out))),
        u(generator.values(batch * out * rank)),
        s(generator.values(batch * rank)),
        v(generator.values(batch * in * rank)),
        grad_y(rounded(generator.values(batch * n * out))) {}

  LowRankLinear layer(const void* x, const void* weight, const void* b, bool bfloat16) const {
    return {x, weight, bias ? b : nullptr, u.data(), s.data(), v.data(), batch, n, in, out, rank, 2.0f, bfloat16};
  }
};

struct Gradients {
  Floats x, u, s, v;
  explicit Gradients(const Problem& p) : x(p.x.size()), u(p.u.size()), s(p.s.size()), v(p.v.size()) {}
  LowRankGradients all(void* of_x) { return {of_x, u.data(), s.data(), v.data()}; }
};

void test_low_rank_linear(const Problem& p) {
  const size_t projected = p.batch * p.n * low_rank_padded(p.rank);
  const LowRankLinear a = p.layer(p.x.data(), p.weight.data(), p.b.data(), false);
  Floats y(p.grad_y.size()), t(projected), space(low_rank_space(p.batch, p.n, p.in, p.out, p.rank));
  Gradients expected(p);
  low_rank_linear_forward(a, y.data(), t.data(), 1);
  low_rank_linear_backward(a, p.grad_y.data(), t.data(), expected.all(expected.x.data()), 1);

  // float32, added to a product that is there
  LowRankLinear added = p.layer(p.x.data(), nullptr, nullptr, false), none = added;
  none.weight = a.weight, none.bias = a.bias, none.scale = 0;
  Floats same(y.size()), same_t(projected), ignored(projected);
  Gradients found(p);
  low_rank_linear_forward(none, same.data(), ignored.data(), 1);
  low_rank_linear_backward(none, p.grad_y.data(), ignored.data(), {found.x.data(), nullptr, nullptr, nullptr}, 1);
  low_rank_linear_forward_cuda(added, same.data(), same_t.data(), 0);
  low_rank_linear_backward_cuda(added, p.grad_y.data(), t.data(), space.data(), found.all(found.x.data()), 0);
  near(same, y, kFloat);
  near(same_t, t, kFloat);
  near(found.x, expected.x, kFloat);
  near(found.u, expected.u, kFloat);
  near(found.s, expected.s, 10 * kFloat);  // its terms cancel
  near(found.v, expected.v, kFloat);

  if (p.rank > 16) {
    CHECK_THROWS(std::invalid_argument, low_rank_linear_forward_cuda(a, same.data(), same_t.data(), 0));
    return;
  }
  const Halves x = halves(p.x), weight = halves(p.weight), b = halves(p.b), grad_y = halves(p.grad_y);
  const LowRankLinear whole = p.layer(x.data(), weight.data(), b.data(), true);
  Halves half_y(y.size()), grad_x(x.size());
  low_rank_linear_forward_cuda(whole, half_y.data(), same_t.data(), 0);
  low_rank_linear_backward_cuda(whole, grad_y.data(), same_t.data(), space.data(), found.all(grad_x.data()), 0);
  near(floats(half_y), y, kHalf);
  near(same_t, t, kHalf);
  near(floats(grad_x), expected.x, kHalf);
  near(found.u, expected.u, kHalf);
  near(found.s, expected.s, 10 * kHalf);
  near(found.v, expected.v, kHalf);
  Floats alone(p.s.size());  // all that a decoder's layer asks for
  low_rank_linear_backward_cuda(whole, grad_y.data(), same_t.data(), space.data(),
                                {nullptr, nullptr, alone.data(), nullptr}, 0);
  near(alone, expected.s, 10 * kHalf);
}

}  // namespace

int main() {
  for (const size_t shift : {0, 2}) test_window_attention({nullptr, nullptr, 2, 6, 9, 2, 5, 4, shift});
  test_window_attention({nullptr, nullptr, 1, 5, 8, 1, 20, 4, 2});
  test_window_attention({nullptr, nullptr, 1, 9, 12, 2, 16, 8, 4});
  test_window_attention({nullptr, nullptr, 1, 8, 7, 1, 32, 8, 0});
  test_low_rank_linear(Problem(1, 1, 1, 1, 1, true));
  test_low_rank_linear(Problem(2, 70, 40, 72, 4, true));
  test_low_rank_linear(Problem(1, 260, 9, 10, 2, false));
  test_low_rank_linear(Problem(2, 17, 33, 15, 16, true));
  test_low_rank_linear(Problem(1, 9, 65, 140, 18, true));
}
