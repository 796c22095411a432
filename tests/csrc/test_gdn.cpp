// Any number of pixels stays within its arrays, threads change nothing, and the kernels of all instruction sets agree.
// What they compute, tests/ops/test_gdn.py holds against its definition.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "check.hpp"
#include "gdn/gdn.hpp"
#include "simd/half.hpp"
#include "simd/targets.hpp"

using namespace lora_comp;

namespace {

using simd::Target;

std::vector<float> random_floats(size_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> x(size);
  for (float& value : x) value = normal(generator);
  return x;
}

std::vector<float> numbers(const std::vector<float>& x) { return x; }
std::vector<float> numbers(const std::vector<uint16_t>& x) {
  std::vector<float> to(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t word = static_cast<uint32_t>(x[i]) << 16;
    std::memcpy(&to[i], &word, sizeof word);
  }
  return to;
}

// Cut to the upper half of their bits, if T is a half.
template <class T>
std::vector<T> cut(const std::vector<float>& x) {
  std::vector<T> to(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    std::memcpy(&to[i], reinterpret_cast<const char*>(&x[i]) + sizeof(float) - sizeof(T), sizeof(T));
  return to;
}

// y, and the gradients of x, beta and gamma.
template <class T>
std::vector<float> run(Target target, size_t pixels, size_t channels, bool inverse, unsigned threads) {
  std::vector<float> beta = random_floats(channels, 1), gamma = random_floats(channels * channels, 2);
  for (float& x : beta) x = 0.1f + std::fabs(x);
  for (float& x : gamma) x = 0.1f * std::fabs(x);
  const std::vector<T> x = cut<T>(random_floats(pixels * channels, 3));
  const std::vector<T> grad_y = cut<T>(random_floats(pixels * channels, 4));
  std::vector<T> y(x.size()), grad_x(x.size()), alone(x.size());
  std::vector<float> grad_beta(beta.size()), grad_gamma(gamma.size());
  const Gdn layer{pixels, channels, beta.data(), gamma.data(), inverse, sizeof(T) == sizeof(uint16_t)};
  simd::most() = target;
  gdn_forward(layer, x.data(), y.data(), threads);
  gdn_backward(layer, x.data(), grad_y.data(), grad_x.data(), grad_beta.data(), grad_gamma.data(), threads);
  gdn_backward(layer, x.data(), grad_y.data(), alone.data(), nullptr, nullptr, threads);
  CHECK(grad_x == alone);
  std::vector<float> all = numbers(y);
  for (const std::vector<float>& grad : {numbers(grad_x), grad_beta, grad_gamma})
    all.insert(all.end(), grad.begin(), grad.end());
  return all;
}

double apart(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += a[i] * a[i];
  }
  return std::sqrt(difference / size);
}

template <class T>
void test(Target target, double tolerance) {
  for (const bool inverse : {false, true}) {
    const std::vector<float> one = run<T>(target, 1300, 96, inverse, 1);
    CHECK(one == run<T>(target, 1300, 96, inverse, 3));
    CHECK(apart(run<T>(Target::kPlain, 1300, 96, inverse, 1), one) < tolerance);
    for (const size_t pixels : {1, 63, 64, 65}) run<T>(target, pixels, 32, inverse, 2);
  }
}

}  // namespace

int main() {
  test<float>(Target::kPlain, 1e-9);
  test<uint16_t>(Target::kPlain, 1e-9);
  for (const Target target : {Target::kAvx2, Target::kAvx512}) {  // or the best of this machine
    test<float>(target, 1e-5);
    simd::most() = target;
    test<uint16_t>(target, simd::half_available() ? 1e-2 : 1e-3);
  }
}
