// A low-rank linear layer and its gradients against the sums that define them, in allocations of exactly their size.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "svd_lora/svd_lora.hpp"
#include "tables.hpp"

using namespace lora_comp;

namespace {

rans::Random generator{5};

using Matrix = std::vector<double>;

Matrix doubles(const std::vector<float>& values) { return Matrix(values.begin(), values.end()); }

// The (rows, columns) product of a (rows, inner) and b, (inner, columns) or its transpose.
Matrix product(const double* a, const double* b, size_t rows, size_t inner, size_t columns, bool transposed) {
  Matrix c(rows * columns);
  for (size_t i = 0; i < rows; ++i)
    for (size_t k = 0; k < inner; ++k)
      for (size_t j = 0; j < columns; ++j)
        c[i * columns + j] += a[i * inner + k] * (transposed ? b[j * inner + k] : b[k * columns + j]);
  return c;
}

Matrix transpose(const double* a, size_t rows, size_t columns) {
  Matrix t(rows * columns);
  for (size_t i = 0; i < rows; ++i)
    for (size_t j = 0; j < columns; ++j) t[j * rows + i] = a[i * columns + j];
  return t;
}

void near(const float* found, const Matrix& expected, double tolerance) {
  for (size_t i = 0; i < expected.size(); ++i) CHECK(std::abs(found[i] - expected[i]) < tolerance);
}

struct Problem {
  size_t batch, n, in, out, rank;
  bool bias;
  std::vector<float> x, weight, b, u, s, v, grad_y;

  Problem(size_t batch, size_t n, size_t in, size_t out, size_t rank, bool bias)
      : batch(batch),
        n(n),
        in(in),
        out(out),
        rank(rank),
        bias(bias),
        x(generator.values(batch * n * in)),
        weight(generator.values(out * in)),
        b(generator.values(out)),
        u(generator.values(batch * out * rank)),
        s(generator.values(batch * rank)),
        v(generator.values(batch * in * rank)),
        grad_y(generator.values(batch * n * out)) {}

  LowRankLinear layer() const {
    return {x.data(), weight.data(), bias ? b.data() : nullptr, u.data(), s.data(), v.data(), batch, n, in, out, rank,
            2.0f,     false};
  }

  // W + 2 U diag(s) V^T of an adapter
  Matrix merged(size_t adapter) const {
    Matrix w = doubles(weight);
    for (size_t o = 0; o < out; ++o)
      for (size_t i = 0; i < in; ++i)
        for (size_t k = 0; k < rank; ++k)
          w[o * in + i] +=
              2.0 * u[(adapter * out + o) * rank + k] * s[adapter * rank + k] * v[(adapter * in + i) * rank + k];
    return w;
  }
};

void test_agrees_with_its_definition(const Problem& p, unsigned threads) {
  const LowRankLinear a = p.layer();
  std::vector<float> y(p.batch * p.n * p.out), t(p.batch * p.n * low_rank_padded(p.rank)), x(p.x.size());
  std::vector<float> u(p.u.size()), s(p.s.size()), v(p.v.size());
  low_rank_linear_forward(a, y.data(), t.data(), threads);
  low_rank_linear_backward(a, p.grad_y.data(), t.data(), {x.data(), u.data(), s.data(), v.data()}, threads);
  const Matrix all_x = doubles(p.x), all_g = doubles(p.grad_y);
  const double tolerance = 1e-4 * static_cast<double>((p.n + p.in + p.out) * p.rank);
  for (size_t adapter = 0; adapter < p.batch; ++adapter) {
    const Matrix w = p.merged(adapter);
    const double *const rows = all_x.data() + adapter * p.n * p.in, *const g = all_g.data() + adapter * p.n * p.out;
    Matrix expected = product(rows, w.data(), p.n, p.in, p.out, true);
    for (size_t i = 0; p.bias && i < expected.size(); ++i) expected[i] += p.b[i % p.out];
    near(y.data() + adapter * p.n * p.out, expected, tolerance);
    near(x.data() + adapter * p.n * p.in, product(g, w.data(), p.n, p.out, p.in, false), tolerance);

    const Matrix dense = product(transpose(g, p.n, p.out).data(), rows, p.out, p.n, p.in, false);  // of W
    Matrix grad_u(p.out * p.rank), grad_s(p.rank), grad_v(p.in * p.rank);
    for (size_t o = 0; o < p.out; ++o)
      for (size_t i = 0; i < p.in; ++i)
        for (size_t k = 0; k < p.rank; ++k) {
          const double d = 2 * dense[o * p.in + i], u_ = p.u[(adapter * p.out + o) * p.rank + k];
          const double s_ = p.s[adapter * p.rank + k], v_ = p.v[(adapter * p.in + i) * p.rank + k];
          grad_u[o * p.rank + k] += d * s_ * v_;
          grad_s[k] += d * u_ * v_;
          grad_v[i * p.rank + k] += d * u_ * s_;
        }
    near(u.data() + adapter * p.out * p.rank, grad_u, tolerance * 10);
    near(s.data() + adapter * p.rank, grad_s, tolerance * 10);
    near(v.data() + adapter * p.in * p.rank, grad_v, tolerance * 10);
  }
}

std::vector<uint16_t> halves(const std::vector<float>& values) {
  std::vector<uint16_t> to(values.size());
  for (size_t i = 0; i < to.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof bits);
    to[i] = static_cast<uint16_t>(bits >> 16);
  }
  return to;
}

std::vector<float> floats(const std::vector<uint16_t>& values) {
  std::vector<float> to(values.size());
  for (size_t i = 0; i < to.size(); ++i) {
    const uint32_t bits = static_cast<uint32_t>(values[i]) << 16;
    std::memcpy(&to[i], &bits, sizeof bits);
  }
  return to;
}

// In bfloat16, what is added to a product that is there: the same as in float32 but for the rounding of the results.
void test_adds_in_bfloat16(Problem p) {
  const auto half_x = halves(p.x), half_g = halves(p.grad_y);
  p.x = floats(half_x);
  p.grad_y = floats(half_g);
  LowRankLinear a = p.layer();
  a.weight = nullptr;
  std::vector<float> y(p.grad_y), t(p.batch * p.n * low_rank_padded(p.rank)), x(p.x), s(p.s.size());
  low_rank_linear_forward(a, y.data(), t.data(), 1);
  low_rank_linear_backward(a, p.grad_y.data(), t.data(), {x.data(), nullptr, s.data(), nullptr}, 1);
  auto half_y = half_g, half_grad = half_x;
  auto same_t = t, same_s = s;
  a.x = half_x.data();
  a.bfloat16 = true;
  low_rank_linear_forward(a, half_y.data(), same_t.data(), 1);
  low_rank_linear_backward(a, half_g.data(), t.data(), {half_grad.data(), nullptr, same_s.data(), nullptr}, 1);
  CHECK(t == same_t && s == same_s);
  const auto found_y = floats(half_y), found_x = floats(half_grad);
  for (size_t i = 0; i < y.size(); ++i) CHECK(std::abs(found_y[i] - y[i]) <= std::abs(y[i]) / 256);
  for (size_t i = 0; i < x.size(); ++i) CHECK(std::abs(found_x[i] - x[i]) <= std::abs(x[i]) / 256);
}

}  // namespace

int main() {
  for (const size_t n : {1, 67, 300})
    for (const size_t in : {1, 17, 64})
      for (const size_t out : {1, 15, 96})
        for (const size_t rank : {1, 4, 18}) {
          const Problem problem(1 + n % 2, n, in, out, rank, n != 1);
          test_agrees_with_its_definition(problem, 3);
          test_adds_in_bfloat16(problem);
        }
}
