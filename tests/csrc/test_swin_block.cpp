// Maps, shifts, heads and ranks of every size stay within their arrays, threads and what is kept change nothing, and
// the kernels of all instruction sets agree. What they compute, tests/ops/test_swin_block.py holds against its
// definition.
#include <algorithm>
#include <cmath>
#include <random>

#include "check.hpp"
#include "simd/half.hpp"
#include "simd/targets.hpp"
#include "swin/block.hpp"

using namespace lora_comp;

namespace {

using Results = std::vector<std::vector<float>>;

// What a block is computed by: an instruction set, and whether in bfloat16.
struct Kernel {
  simd::Target target;
  bool half;
};

std::vector<float> random_floats(size_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 0.3f);
  std::vector<float> x(size);
  for (float& value : x) value = normal(generator);
  return x;
}

// The tensors of one linear layer.
struct Layer {
  std::vector<float> weight, bias, u, s, v, grad_u, grad_s, grad_v, grad_weight, grad_bias;
  SwinLayer view;

  Layer(size_t in, size_t out, size_t rank, size_t images, unsigned seed)
      : weight(random_floats(in * out, seed)),
        bias(random_floats(out, seed + 1)),
        u(random_floats(images * out * rank, seed + 2)),
        s(random_floats(images * rank, seed + 3)),
        v(random_floats(images * in * rank, seed + 4)),
        grad_u(u.size()),
        grad_s(s.size()),
        grad_v(v.size()),
        grad_weight(weight.size()),
        grad_bias(bias.size()),
        view{weight.data(), bias.data(), u.data(), s.data(), v.data(), in, out, rank} {}

  SwinLayerGrad grad(bool dense) {
    const bool factors = view.rank > 0;
    return {factors ? grad_u.data() : nullptr, factors ? grad_s.data() : nullptr, factors ? grad_v.data() : nullptr,
            dense ? grad_weight.data() : nullptr, dense ? grad_bias.data() : nullptr};
  }
};

// y, and all gradients.
Results run(Kernel kernel, size_t batch, size_t height, size_t width, size_t shift, size_t dim, size_t heads,
            size_t rank, bool own, bool dense, unsigned threads, bool keeps = false) {
  const size_t images = own ? batch : 1, size = batch * height * width * dim;
  Layer qkv(dim, 3 * dim, rank, images, 1), proj(dim, dim, rank, images, 2);
  Layer fc1(dim, 2 * dim, 0, images, 3), fc2(2 * dim, dim, rank / 2, images, 4);
  const std::vector<float> norm = random_floats(dim, 5), position = random_floats(heads * 64 * 64, 6);
  const SwinBlock block{
      batch,       {height, width, 8, shift}, dim,      heads,     norm.data(), norm.data(), norm.data(),
      norm.data(), position.data(),           qkv.view, proj.view, fc1.view,    fc2.view,    own};
  const std::vector<float> x = random_floats(size, 7), grad_y = random_floats(size, 8);
  std::vector<float> y(size), grad_x(size), grad_norm(4 * dim), grad_position(position.size());
  const size_t windows = batch * block.windows.rows() * block.windows.columns();
  std::vector<float> kept(keeps ? windows * (48 * heads + dim + 2 * dim) * 64 : 0);
  float* const room = keeps ? kept.data() : nullptr;
  simd::most() = kernel.target;
  swin_block_forward(block, x.data(), y.data(), room, kernel.half, threads);
  SwinBlockGrad grad{qkv.grad(dense), proj.grad(dense), fc1.grad(dense), fc2.grad(dense), {}, {}, {}, {}, {}};
  if (dense) {
    float* const norms = grad_norm.data();
    grad.norm1_weight = norms, grad.norm1_bias = norms + dim;
    grad.norm2_weight = norms + 2 * dim, grad.norm2_bias = norms + 3 * dim;
    grad.position = grad_position.data();
  }
  swin_block_backward(block, x.data(), grad_y.data(), grad_x.data(), room, grad, kernel.half, threads);
  Results results = {y, grad_x, grad_norm, grad_position};
  for (const Layer* a : {&qkv, &proj, &fc1, &fc2})
    results.insert(results.end(), {a->grad_u, a->grad_s, a->grad_v, a->grad_weight, a->grad_bias});
  return results;
}

// The largest relative error of a tensor.
double apart(const Results& a, const Results& b) {
  double largest = 0;
  for (size_t k = 0; k < a.size(); ++k) {
    double difference = 0, size = 1e-30;
    for (size_t i = 0; i < a[k].size(); ++i) {
      difference += (a[k][i] - b[k][i]) * (a[k][i] - b[k][i]);
      size += a[k][i] * a[k][i];
    }
    largest = std::max(largest, std::sqrt(difference / size));
  }
  return largest;
}

// y, and the gradients of x and of prompts: `count` in every window, or a map of one for spacing x spacing tokens.
Results run_with_prompts(Kernel kernel, size_t height, size_t width, size_t shift, size_t count, size_t spacing,
                         bool published, unsigned threads, bool keeps = false) {
  constexpr size_t batch = 2, dim = 64, heads = 4;
  Layer qkv(dim, 3 * dim, 0, 1, 1), proj(dim, dim, 0, 1, 2), fc1(dim, 2 * dim, 0, 1, 3), fc2(2 * dim, dim, 0, 1, 4);
  const std::vector<float> norm = random_floats(dim, 5), position = random_floats(heads * 64 * 64, 6);
  const size_t all = spacing ? batch * (height / spacing) * (width / spacing) : count;
  const std::vector<float> prompts = random_floats(all * dim, 9);
  const SwinBlock block{batch,
                        {height, width, 8, shift},
                        dim,
                        heads,
                        norm.data(),
                        norm.data(),
                        norm.data(),
                        norm.data(),
                        position.data(),
                        qkv.view,
                        proj.view,
                        fc1.view,
                        fc2.view,
                        false,
                        {prompts.data(), spacing ? (8 / spacing) * (8 / spacing) : count, spacing, published}};
  const std::vector<float> x = random_floats(batch * height * width * dim, 7), grad_y = random_floats(x.size(), 8);
  std::vector<float> y(x.size()), grad_x(x.size()), grad_prompts(prompts.size());
  const size_t windows = batch * block.windows.rows() * block.windows.columns();
  std::vector<float> kept(keeps ? windows * (48 * heads + 3 * dim) * 64 : 0);
  float* const room = keeps ? kept.data() : nullptr;
  simd::most() = kernel.target;
  swin_block_forward(block, x.data(), y.data(), room, kernel.half, threads);
  SwinBlockGrad grad{};
  grad.prompts = grad_prompts.data();
  swin_block_backward(block, x.data(), grad_y.data(), grad_x.data(), room, grad, kernel.half, threads);
  return {y, grad_x, grad_prompts};
}

void test_prompts(Kernel kernel, double tolerance) {
  const auto alike = [&](size_t height, size_t width, size_t count, size_t spacing, bool published) {
    const auto of = [&](Kernel by, unsigned threads, bool keeps) {
      return run_with_prompts(by, height, width, spacing ? 4 : 3, count, spacing, published, threads, keeps);
    };
    const Results one = of(kernel, 1, false);
    CHECK(one == of(kernel, 3, false));
    CHECK(one == of(kernel, 2, true));
    CHECK(apart(of({simd::Target::kPlain, false}, 1, false), one) < tolerance);
  };
  for (const size_t count : {1, 16, 64}) alike(9, 20, count, 0, false);
  for (const size_t spacing : {1, 2, 4}) alike(12, 20, 0, spacing, false);
  alike(16, 24, 0, 2, true);
}

void test(Kernel kernel, double tolerance) {
  for (const bool own : {false, true})
    for (const bool dense : {false, true}) {
      const Results one = run(kernel, 2, 9, 20, 4, 64, 4, 5, own, dense, 1);
      CHECK(one == run(kernel, 2, 9, 20, 4, 64, 4, 5, own, dense, 3));
      CHECK(one == run(kernel, 2, 9, 20, 4, 64, 4, 5, own, dense, 2, true));
      CHECK(apart(run({simd::Target::kPlain, false}, 2, 9, 20, 4, 64, 4, 5, own, dense, 1), one) < tolerance);
    }
  test_prompts(kernel, tolerance);
  run(kernel, 1, 8, 8, 0, 32, 4, 17, false, true, 1);
  run(kernel, 1, 3, 3, 7, 96, 6, 0, false, true, 2, true);
}

}  // namespace

int main() {
  using simd::Target;
  test({Target::kPlain, false}, 1e-9);
  for (const Target target : {Target::kAvx2, Target::kAvx512}) test({target, false}, 1e-5);  // or this machine's best
  if (simd::half_available()) test({Target::kAvx512, true}, 2e-2);
}
