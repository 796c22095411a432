// Latents under the sanitizers: exact on every kernel, and on a machine whose scales are a little off.
#include <cmath>
#include <limits>
#include <vector>

#include "check.hpp"
#include "rans/latents.hpp"
#include "tables.hpp"

using namespace lora_comp::rans;

namespace {

constexpr double kMargin = 1e-9, kNan = std::numeric_limits<double>::quiet_NaN();

// What is said of latents, and the arrays that Gaussians only points to.
struct Model {
  Arrays arrays{table_set(2)};
  std::vector<double> bounds, means, scales;

  explicit Model(size_t n) {
    for (size_t t = 0; t + 1 < arrays.tables().count(); ++t)
      bounds.push_back(0.11 * std::pow(1.5, static_cast<double>(t) + 0.5));
    Random random{n};
    for (size_t i = 0; i < n; ++i) {
      means.push_back(static_cast<double>(random.below(1u << 20)) / 65536 - 8);
      const double bound = bounds[random.below(bounds.size())];
      scales.push_back(random.below(20) ? bound * (0.5 + static_cast<double>(random.below(1000)) / 999) : bound);
    }
  }

  Gaussians gaussians() const { return {means.data(), scales.data(), means.size(), bounds.data(), bounds.size()}; }

  std::vector<float> latents() const {
    Random random{means.size() + 1};
    std::vector<float> y;
    for (const double mean : means)
      y.push_back(static_cast<float>(mean + static_cast<double>(random.below(4000)) / 100 - 20));
    return y;
  }
};

void test_a_machine_whose_scales_are_off_reads_the_same() {
  for (const size_t n : {0, 1, 1000, 1025, 150001}) {
    Model model(n);
    const std::vector<float> y = model.latents();
    std::vector<int32_t> symbols(n);
    std::vector<Hint> hints;
    const std::string data =
        encode_latents(y.data(), model.gaussians(), model.arrays.tables(), kMargin, symbols.data(), hints);
    for (size_t i = 0; i < n; ++i) CHECK(symbols[i] == std::nearbyint(static_cast<double>(y[i]) - model.means[i]));
    CHECK(n < 1000 || hints.size() > n / 40);
    for (const double off : {0.0, 1e-10, -1e-10}) {
      Model other(n);
      for (double& scale : other.scales) scale *= 1 + off;
      for (const std::string& kernel : kernels()) {
        std::vector<int32_t> found(n);
        std::vector<float> y_hat(n);
        decode_latents(reinterpret_cast<const uint8_t*>(data.data()), data.size(), other.gaussians(),
                       other.arrays.tables(), hints, found.data(), y_hat.data(), {3, kernel});
        CHECK(found == symbols);
        for (size_t i = 0; i < n; ++i) CHECK(y_hat[i] == static_cast<float>(symbols[i] + model.means[i]));
      }
    }
  }
}

void test_what_is_no_number_is_refused() {
  const auto encoded = [](Model model, std::vector<float> y) {
    std::vector<int32_t> symbols(y.size());
    std::vector<Hint> hints;
    return encode_latents(y.data(), model.gaussians(), model.arrays.tables(), kMargin, symbols.data(), hints);
  };
  const Model model(100);
  const std::string data = encoded(model, model.latents());
  for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e9f}) {
    std::vector<float> y = model.latents();
    y[99] = wrong;
    CHECK_THROWS(std::invalid_argument, encoded(model, y));
  }
  const auto decoded = [&](const Model& said, const std::vector<Hint>& hints) {
    std::vector<int32_t> symbols(100);
    std::vector<float> y(100);
    decode_latents(reinterpret_cast<const uint8_t*>(data.data()), data.size(), said.gaussians(), said.arrays.tables(),
                   hints, symbols.data(), y.data());
    return symbols;
  };
  Model no_scale(100), no_mean(100);
  no_scale.scales[99] = kNan;
  no_mean.means[0] = kNan;
  CHECK_THROWS(StreamError, decoded(no_scale, {}));
  CHECK_THROWS(StreamError, decoded(no_mean, {}));
  CHECK_THROWS(StreamError, decoded(model, {{100, 0}}));
  CHECK_THROWS(StreamError, decoded(model, {{std::numeric_limits<size_t>::max(), 0}}));
  CHECK_THROWS(StreamError, decoded(model, {{0, static_cast<int32_t>(model.arrays.tables().count())}}));
  CHECK_THROWS(StreamError, decoded(model, {{0, -1}}));
}

}  // namespace

int main() {
  test_a_machine_whose_scales_are_off_reads_the_same();
  test_what_is_no_number_is_refused();
}
