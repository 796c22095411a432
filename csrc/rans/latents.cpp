#include "latents.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>

#include "kernels.hpp"

namespace lora_comp::rans {
namespace {

constexpr size_t kChunk = 1024;                // symbols that stay in the first cache between the two loops
constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number, half to even

// Scales to tables: the first 16 bits of a double tell the table to a step or two.
class Chooser {
 public:
  explicit Chooser(const Gaussians& model) : bounds_(model.bounds, model.bounds + model.bounds_count), starts_(kCells) {
    for (size_t i = 0; i < bounds_.size(); ++i)
      if (!(bounds_[i] > 0) || (i > 0 && !(bounds_[i] > bounds_[i - 1])))
        throw std::invalid_argument("bounds of scales must be positive and rise");
    bounds_.push_back(std::numeric_limits<double>::infinity());
    int32_t table = 0;
    for (uint64_t cell = 0; cell < kCells; ++cell) {
      const uint64_t bits = cell << kCellBits;
      double least;
      std::memcpy(&least, &bits, sizeof least);
      while (bounds_[static_cast<size_t>(table)] < least) ++table;
      starts_[cell] = table;
    }
  }

  // The number of bounds below `scale`, which is no NaN.
  int32_t table(double scale) const {
    if (!(scale > 0)) return 0;
    uint64_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    int32_t table = starts_[bits >> kCellBits];
    table += bounds_[static_cast<size_t>(table)] < scale;
    while (bounds_[static_cast<size_t>(table)] < scale) ++table;
    return table;
  }

  bool near_bound(double scale, int32_t table, double margin) const {
    const auto at = static_cast<size_t>(table);
    return (at > 0 && scale - bounds_[at - 1] <= margin * bounds_[at - 1]) ||
           (bounds_[at] - scale <= margin * scale);  // never at the last, infinity
  }

 private:
  static constexpr unsigned kCellBits = 48;
  static constexpr size_t kCells = 0x7ff1;  // up to infinity's

  std::vector<double> bounds_;  // and infinity
  std::vector<int32_t> starts_;
};

void check_tables(const Gaussians& model, const Tables& tables) {
  if (tables.count() != model.bounds_count + 1)
    throw std::invalid_argument(std::to_string(model.bounds_count) + " bounds of scales go with " +
                                std::to_string(model.bounds_count + 1) + " tables, not " +
                                std::to_string(tables.count()));
}

}  // namespace

std::string encode_latents(const float* y, const Gaussians& model, const Tables& tables, double margin,
                           int32_t* symbols, std::vector<Hint>& hints, const Engine& engine) {
  check_tables(model, tables);
  if (model.n == 0) return {};
  const Kernel* const kernel = choose(engine.kernel);
  const Flat flat(tables, nullptr, 0, false);
  const Chooser chooser(model);
  std::mutex mutex;
  const auto fill = [&](size_t begin, size_t end, uint32_t* bins) {
    Found found;
    int32_t indexes[kChunk];
    for (size_t from = begin; from < end; from += kChunk) {
      const size_t count = std::min(kChunk, end - from);
      for (size_t j = 0; j < count; ++j) {
        const size_t i = from + j;
        const double scale = model.scales[i], value = static_cast<double>(y[i]) - model.means[i];
        if (!(std::fabs(value) < 2147483647.0) || std::isnan(scale))
          throw std::invalid_argument("latents must be finite and within int32 of their means");
        symbols[i] = static_cast<int32_t>((value + kRound) - kRound);
        indexes[j] = chooser.table(scale);
        if (chooser.near_bound(scale, indexes[j], margin)) {
          const std::lock_guard<std::mutex> lock(mutex);
          hints.push_back({i, indexes[j]});
        }
      }
      const Found part = find_bins(kernel, flat, symbols + from, indexes, count, bins + (from - begin));
      found.escapes += part.escapes;
      found.bits += part.bits;
    }
    return found;
  };
  std::string data = encode_bins(model.n, fill, kernel, engine.threads);
  std::sort(hints.begin(), hints.end(), [](const Hint& a, const Hint& b) { return a.position < b.position; });
  return data;
}

void decode_latents(const uint8_t* data, size_t size, const Gaussians& model, const Tables& tables,
                    const std::vector<Hint>& hints, int32_t* symbols, float* y, const Engine& engine) {
  check_tables(model, tables);
  const Chooser chooser(model);
  const std::unique_ptr<int32_t[]> indexes(new int32_t[model.n]);
  for (size_t i = 0; i < model.n; ++i) {
    if (!std::isfinite(model.means[i]) || std::isnan(model.scales[i]))
      throw StreamError("coded latents are damaged: the hyper synthesis gives no number");
    indexes[i] = chooser.table(model.scales[i]);
  }
  for (const Hint& hint : hints) {
    if (hint.position >= model.n || hint.table < 0 || static_cast<size_t>(hint.table) >= tables.count())
      throw StreamError("coded latents are damaged: a hint names what is not there");
    indexes[hint.position] = hint.table;
  }
  decode(data, size, indexes.get(), model.n, tables, symbols, engine);
  for (size_t i = 0; i < model.n; ++i) y[i] = static_cast<float>(symbols[i] + model.means[i]);
}

}  // namespace lora_comp::rans
