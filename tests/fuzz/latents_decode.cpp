// Any bytes and any hints as latents: every kernel refuses them, or all find the same, and y is symbols and means.
//
// Input: a byte for the scales, two for the number of latents (little-endian), one for that of hints, five for each
// hint (position, table), and the stream.
#include <limits>
#include <vector>

#include "check.hpp"
#include "rans/latents.hpp"
#include "tables.hpp"

using namespace lora_comp::rans;

namespace {

// What a hyper synthesis could say, and now and then what it should not.
std::vector<double> scales_of(uint8_t seed, size_t n, const std::vector<double>& bounds) {
  Random random{seed};
  std::vector<double> scales(n);
  for (double& scale : scales) {
    const double bound = bounds[random.below(bounds.size())];
    switch (random.below(seed % 8 ? 3 : 40)) {
      case 0:
        scale = bound;
        break;
      case 1:
        scale = std::nextafter(bound, 0.0);
        break;
      case 2:
        scale = bound * static_cast<double>(random.below(3000)) / 1000;
        break;
      case 3:
        scale = -bound;
        break;
      case 4:
        scale = std::numeric_limits<double>::infinity();
        break;
      case 5:
        scale = std::numeric_limits<double>::quiet_NaN();
        break;
      case 6:
        scale = std::numeric_limits<double>::denorm_min();
        break;
      default:
        scale = 0.11;
    }
  }
  return scales;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4 || size < 4 + 5u * data[3]) return 0;
  static const Arrays arrays(table_set(2));
  const Tables tables = arrays.tables();
  std::vector<double> bounds;
  for (size_t t = 0; t + 1 < tables.count(); ++t) bounds.push_back(0.11 * std::pow(1.5, static_cast<double>(t) + 0.5));
  const size_t n = data[1] | static_cast<size_t>(data[2]) << 8;
  const std::vector<double> scales = scales_of(data[0], n, bounds);
  std::vector<double> means(n);
  for (size_t i = 0; i < n; ++i) means[i] = static_cast<double>(i % 97) - 48.3;
  std::vector<Hint> hints;
  const uint8_t* p = data + 4;
  for (unsigned i = 0; i < data[3]; ++i, p += 5)
    hints.push_back(
        {p[0] | static_cast<size_t>(p[1]) << 8 | static_cast<size_t>(p[2]) << 16 | static_cast<size_t>(p[3]) << 24,
         p[4]});

  size_t refused = 0;
  std::vector<std::vector<int32_t>> found;
  for (const std::string& kernel : kernels()) {
    std::vector<int32_t> symbols(n);
    std::vector<float> y(n);
    try {
      decode_latents(p, size - static_cast<size_t>(p - data),
                     {means.data(), scales.data(), n, bounds.data(), bounds.size()}, tables, hints, symbols.data(),
                     y.data(), {1, kernel});
    } catch (const StreamError&) {
      ++refused;
      continue;
    }
    for (size_t i = 0; i < n; ++i) CHECK(y[i] == static_cast<float>(symbols[i] + means[i]));
    found.push_back(std::move(symbols));
  }
  CHECK(found.empty() || refused == 0);
  for (const auto& symbols : found) CHECK(symbols == found[0]);
  return 0;
}
