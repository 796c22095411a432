// Tables of every kind that the coder must stand, for the unit tests and the fuzz targets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "rans/rans.hpp"

namespace lora_comp::rans {

// A generator that is the same everywhere: SplitMix64.
struct Random {
  uint64_t state;

  uint64_t operator()() {
    uint64_t x = state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  uint64_t below(uint64_t bound) { return (*this)() % bound; }
  // Numbers in [-1, 1].
  std::vector<float> values(size_t count) {
    std::vector<float> made(count);
    for (float& value : made) value = static_cast<float>(below(2001)) / 1000 - 1;
    return made;
  }
};

struct TableSet {
  std::vector<std::vector<int32_t>> rows;
  std::vector<int32_t> offsets;

  void add(std::vector<int32_t> cdf, int32_t offset) {
    rows.push_back(std::move(cdf));
    offsets.push_back(offset);
  }

  // A table of the given weights, whose largest takes what rounding leaves.
  void add_weighed(const std::vector<double>& weights, int32_t offset) {
    double sum = 0;
    for (const double weight : weights) sum += weight;
    std::vector<int32_t> frequencies;
    int32_t total = 0;
    for (const double weight : weights) {
      frequencies.push_back(1 + static_cast<int32_t>(weight / sum * (65536.0 - static_cast<double>(weights.size()))));
      total += frequencies.back();
    }
    *std::max_element(frequencies.begin(), frequencies.end()) += 65536 - total;
    std::vector<int32_t> cdf{0};
    for (const int32_t frequency : frequencies) cdf.push_back(cdf.back() + frequency);
    add(cdf, offset);
  }
};

// The arrays that Tables only points to.
class Arrays {
 public:
  explicit Arrays(const TableSet& set) : offsets_(set.offsets) {
    size_t stride = 0;
    for (const auto& row : set.rows) stride = std::max(stride, row.size());
    stride_ = stride;
    for (const auto& row : set.rows) {
      sizes_.push_back(static_cast<int32_t>(row.size()));
      cdfs_.insert(cdfs_.end(), row.begin(), row.end());
      cdfs_.resize(sizes_.size() * stride);
    }
  }

  Tables tables() const { return {cdfs_.data(), sizes_.data(), offsets_.data(), sizes_.size(), stride_}; }

 private:
  std::vector<int32_t> cdfs_, sizes_, offsets_;
  size_t stride_;
};

constexpr unsigned kTableSets = 6;

inline TableSet table_set(unsigned kind) {
  constexpr int32_t kLowest = std::numeric_limits<int32_t>::min(), kHighest = std::numeric_limits<int32_t>::max();
  TableSet set;
  switch (kind % kTableSets) {
    case 0:  // two symbols and the escape
      set.add({0, 30000, 60000, 65536}, -1);
      break;
    case 1:  // nothing but the escape, at no cost
      set.add({0, 65536}, 0);
      break;
    case 2: {  // as a codec has them: from nearly certain to very wide
      for (double scale = 0.11; scale < 256; scale *= 1.5) {
        const int half = static_cast<int>(8 * scale) + 2;
        std::vector<double> weights;
        for (int k = -half; k <= half; ++k) weights.push_back(std::exp(-0.5 * k * k / scale / scale));
        weights.push_back(1e-6);
        set.add_weighed(weights, -half);
      }
      break;
    }
    case 3: {  // as many bins as there can be
      std::vector<int32_t> cdf(65537);
      for (size_t j = 0; j < cdf.size(); ++j) cdf[j] = static_cast<int32_t>(j);
      set.add(cdf, -32768);
      break;
    }
    case 4:  // the ends of int32
      set.add({0, 1, 65536}, kLowest);
      set.add({0, 65535, 65536}, kHighest - 2);
      set.add({0, 1, 2, 65536}, kLowest + 1);
      break;
    default: {  // anything
      Random random{7};
      for (int t = 0; t < 9; ++t) {
        std::vector<double> weights;
        for (uint64_t j = 1 + random.below(300); j > 0; --j)
          weights.push_back(std::pow(static_cast<double>(1 + random.below(1000)), 1 + t % 4));
        set.add_weighed(weights, static_cast<int32_t>(random.below(4000)) - 2000);
      }
    }
  }
  return set;
}

// Symbols under tables drawn at random; `wild` of 256 are any int32, the others of the table's own bins.
inline std::vector<int32_t> random_symbols(Random& random, const Tables& tables, const std::vector<int32_t>& indexes,
                                           unsigned wild) {
  std::vector<int32_t> symbols;
  for (const int32_t index : indexes) {
    const auto t = static_cast<size_t>(index);
    const int32_t* const row = tables.row(t);
    const auto slot = static_cast<int32_t>(random.below(65536));
    const auto bin = std::upper_bound(row, row + tables.bins(t), slot) - row - 1;
    const auto inside = static_cast<int32_t>(tables.offset(t) + bin);
    const auto bits = static_cast<uint32_t>(random());
    symbols.push_back(random.below(256) < wild ? static_cast<int32_t>(bits >> random.below(32)) : inside);
  }
  return symbols;
}

}  // namespace lora_comp::rans
