// Window attention against its definition token by token, and its gradients against differences of that, in allocations
// of exactly their size.
#include <cmath>
#include <vector>

#include "attention/window_attention.hpp"
#include "check.hpp"
#include "tables.hpp"

using namespace lora_comp;

namespace {

rans::Random generator{7};

// The window of a row or column, its place there, and the side of the seam that the shift made.
struct Place {
  size_t window, token, side;
  Place(size_t at, size_t size, const WindowAttention& a) {
    const size_t padded = (size + a.window - 1) / a.window * a.window, moved = (at + padded - a.shift) % padded;
    window = moved / a.window;
    token = moved % a.window;
    side = at < a.shift;
  }
  bool neighbours(const Place& other) const { return window == other.window && side == other.side; }
};

// sum of weights * out, in double
double loss(const WindowAttention& a, const std::vector<double>& qkv, const std::vector<float>& weights) {
  const size_t channels = a.heads * a.dim, tokens = a.window * a.window;
  double total = 0;
  for (size_t i = 0; i < a.batch * a.height * a.width; ++i) {
    const Place row(i / a.width % a.height, a.height, a), column(i % a.width, a.width, a);
    for (size_t head = 0; head < a.heads; ++head) {
      double sum = 0, weighted = 0;
      for (size_t y = 0; y < a.height; ++y) {
        for (size_t x = 0; x < a.width; ++x) {
          const Place r(y, a.height, a), c(x, a.width, a);
          if (!row.neighbours(r) || !column.neighbours(c)) continue;
          const size_t j = (i / (a.height * a.width) * a.height + y) * a.width + x;
          double logit = 0, value = 0;
          for (size_t d = 0; d < a.dim; ++d) {
            const size_t at = head * a.dim + d;
            logit += qkv[i * 3 * channels + at] * qkv[(j * 3 + 1) * channels + at] / std::sqrt(double(a.dim));
            value += qkv[(j * 3 + 2) * channels + at] * weights[i * channels + at];
          }
          const size_t key = r.token * a.window + c.token, query = row.token * a.window + column.token;
          logit += a.bias[(head * tokens + key) * tokens + query];
          sum += std::exp(logit);
          weighted += std::exp(logit) * value;
        }
      }
      total += weighted / sum;
    }
  }
  return total;
}

void test_agrees_with_its_definition(WindowAttention a, unsigned threads) {
  const size_t size = a.batch * a.height * a.width * a.heads * a.dim, tokens = a.window * a.window;
  const auto qkv = generator.values(3 * size), bias = generator.values(a.heads * tokens * tokens);
  const auto weights = generator.values(size);
  a.qkv = qkv.data();
  a.bias = bias.data();
  std::vector<float> out(size), grad_qkv(3 * size), grad_bias(bias.size());
  window_attention_forward(a, out.data(), threads);
  window_attention_backward(a, weights.data(), grad_qkv.data(), grad_bias.data(), threads);
  std::vector<double> at(qkv.begin(), qkv.end());
  double found = 0;
  for (size_t i = 0; i < size; ++i) found += static_cast<double>(out[i]) * weights[i];
  CHECK(std::abs(found - loss(a, at, weights)) < 1e-5 * static_cast<double>(size));

  const auto direction = generator.values(3 * size);
  double slope = 0;
  std::vector<double> ahead(at), behind(at);
  for (size_t i = 0; i < at.size(); ++i) {
    slope += static_cast<double>(grad_qkv[i]) * direction[i];
    ahead[i] += 1e-4 * direction[i];
    behind[i] -= 1e-4 * direction[i];
  }
  const double expected = (loss(a, ahead, weights) - loss(a, behind, weights)) / 2e-4;
  CHECK(std::abs(slope - expected) < 1e-4 * static_cast<double>(size));
  double bias_total = 0;  // a softmax does not see what all its logits have in common
  for (const float value : grad_bias) bias_total += value;
  CHECK(std::abs(bias_total) < 1e-4 * static_cast<double>(size));
}

}  // namespace

int main() {
  for (const size_t window : {4, 8})
    for (const size_t shift : {size_t{0}, window / 2})
      for (const size_t dim : {1, 12, 20}) {
        test_agrees_with_its_definition({nullptr, nullptr, 1, 9, 5, 2, dim, window, shift}, 1);
        test_agrees_with_its_definition({nullptr, nullptr, 2, 8, 17, 1, dim, window, shift}, 3);
      }
  const WindowAttention other{nullptr, nullptr, 1, 8, 8, 1, 33, 8, 0};
  CHECK_THROWS(std::invalid_argument, window_attention_forward(other, nullptr, 1));
}
