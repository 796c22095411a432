// The low-rank update against the lines that define it, on rows that lie apart, in allocations of exactly their size.
#include <cmath>
#include <vector>

#include "check.hpp"
#include "svd_lora/svd_lora.hpp"
#include "tables.hpp"

using namespace lora_comp;

namespace {

rans::Random generator{5};

size_t length(size_t rows, size_t width, size_t stride) { return rows == 0 ? 0 : (rows - 1) * stride + width; }

void test_agrees_with_its_definition(size_t n, size_t in, size_t out, int rank, size_t gap) {
  const auto r = static_cast<size_t>(rank);
  const size_t x_stride = in + gap, y_stride = out + 2 * gap;
  const auto x = generator.values(length(n, in, x_stride)), u = generator.values(out * r);
  const auto s = generator.values(r), v = generator.values(in * r);
  const auto before = generator.values(length(n, out, y_stride));
  auto y = before;
  low_rank_update_cpu({y.data(), x.data(), u.data(), s.data(), v.data(), static_cast<ptrdiff_t>(y_stride),
                       static_cast<ptrdiff_t>(x_stride), n, in, out, rank, 2.0f});
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t row = i / y_stride, o = i % y_stride;
    double expected = before[i];
    for (size_t k = 0; o < out && k < r; ++k) {
      double t = 0;
      for (size_t j = 0; j < in; ++j) t += static_cast<double>(x[row * x_stride + j]) * v[j * r + k];
      expected += 2.0 * s[k] * t * u[o * r + k];
    }
    CHECK(std::abs(y[i] - expected) < 1e-4 * static_cast<double>(in));
    CHECK(o < out || y[i] == before[i]);  // what lies between the rows is not touched
  }
}

}  // namespace

int main() {
  for (const size_t n : {0, 1, 7})
    for (const size_t in : {1, 17, 64})
      for (const size_t out : {1, 15, 96})
        for (const int rank : {1, 4, 16})
          for (const size_t gap : {0, 3}) test_agrees_with_its_definition(n, in, out, rank, gap);
}
