#include <algorithm>
#include <limits>
#include <string>

#include "kernels.hpp"
#include "stream.hpp"

namespace lora_comp::rans {

Tables::Tables(const int32_t* cdfs, const int32_t* sizes, const int32_t* offsets, size_t count, size_t stride)
    : cdfs_(cdfs), sizes_(sizes), offsets_(offsets), count_(count), stride_(stride) {
  for (size_t t = 0; t < count; ++t) {
    const std::string name = "table " + std::to_string(t);
    if (sizes[t] < 2 || static_cast<size_t>(sizes[t]) > stride)
      throw std::invalid_argument(name + ": sizes must lie in [2, " + std::to_string(stride) + "], not " +
                                  std::to_string(sizes[t]));
    const int32_t* cdf = cdfs + t * stride;
    const int32_t bins = sizes[t] - 1;
    bool rises = true;
    for (int32_t j = 0; j < bins; ++j) rises &= cdf[j] < cdf[j + 1];
    if (!rises || cdf[0] != 0 || cdf[bins] != static_cast<int32_t>(kTotal))
      throw std::invalid_argument(name + ": its cdf must rise strictly from 0 to 65536");
    if (static_cast<int64_t>(offsets[t]) + bins > std::numeric_limits<int32_t>::max())
      throw std::invalid_argument(name + ": offset " + std::to_string(offsets[t]) + " leaves the range of int32");
  }
}

void Tables::check(const int32_t* indexes, size_t n) const {
  uint32_t largest = 0;  // a negative index is a large one
  for (size_t i = 0; i < n; ++i) largest = std::max(largest, static_cast<uint32_t>(indexes[i]));
  if (n > 0 && largest >= count_)
    throw std::invalid_argument("indexes must lie in [0, " + std::to_string(count_) + "), not " +
                                std::to_string(static_cast<int32_t>(largest)));
}

Flat::Flat(const Tables& from, const int32_t* indexes, size_t n, bool for_decoder) : tables(from.count()) {
  std::vector<uint8_t> used(from.count(), indexes == nullptr);
  for (size_t i = 0; indexes && i < n; ++i) used[static_cast<size_t>(indexes[i])] = 1;
  for (size_t t = 0; t < from.count(); ++t) {
    if (!used[t]) continue;
    const int32_t* const cdf = from.row(t);
    const auto first = static_cast<uint32_t>(bins.size());
    for (uint32_t j = 0; j < from.bins(t); ++j)
      bins.push_back(static_cast<uint32_t>(cdf[j]) << 16 | static_cast<uint32_t>(cdf[j + 1] - cdf[j] - 1));
    tables[t] = {first, static_cast<uint32_t>(bins.size() - 1), static_cast<uint32_t>(from.offset(t)) - first, 0};
    if (for_decoder) {
      uint32_t shift = 10;  // about two buckets a bin, so that the search rarely takes more than one step
      while (shift > 0 && (kTotal >> shift) < 2 * from.bins(t)) --shift;
      tables[t].buckets = static_cast<uint32_t>(buckets.size()) << 4 | shift;
      uint32_t bin = 0;
      for (uint32_t slot = 0; slot < kTotal; slot += 1u << shift) {
        while (static_cast<uint32_t>(cdf[bin + 1]) <= slot) ++bin;
        buckets.push_back(first + bin);
      }
    }
    if (std::max(bins.size(), buckets.size()) >= kMaxPosition)
      throw std::invalid_argument("tables of more than " + std::to_string(kMaxPosition) + " bins in all");
  }
}

}  // namespace lora_comp::rans
