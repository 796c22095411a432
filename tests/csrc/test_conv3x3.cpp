// Maps of every size stay within their arrays, threads change nothing, and the kernels of all instruction sets agree.
// What they compute, tests/ops/test_conv.py holds against its definition.
#include <cmath>
#include <random>
#include <vector>

#include "check.hpp"
#include "conv/conv.hpp"
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

std::vector<float> run(Target target, size_t height, size_t width, size_t in, size_t more, size_t out,
                       unsigned threads) {
  const std::vector<float> weight = random_floats(36 * (in + more) * out, 1), bias = random_floats(out, 2);
  const std::vector<float> x = random_floats(2 * height * width * in, 3);
  const std::vector<float> beside = random_floats(2 * height * width * more, 4);
  std::vector<float> y(2 * height * width * out);
  simd::most() = target;
  conv3x3({2, height, width, in, more, out, weight.data(), bias.data(), true}, x.data(), more ? beside.data() : nullptr,
          y.data(), threads);
  return y;
}

double apart(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += a[i] * a[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace

int main() {
  for (const Target target : {Target::kPlain, Target::kAvx2, Target::kAvx512})  // or the best of this machine
    for (const size_t out : {16, 32, 48, 64})
      for (const size_t more : {0, 32}) {
        const std::vector<float> one = run(target, 33, 50, 16, more, out, 1);
        CHECK(one == run(target, 33, 50, 16, more, out, 3));
        CHECK(apart(run(Target::kPlain, 33, 50, 16, more, out, 1), one) < 1e-5);
        run(target, 1, 3, 48, more, out, 2);
      }
}
