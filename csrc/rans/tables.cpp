#include <limits>
#include <string>

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
  for (size_t i = 0; i < n; ++i)
    if (static_cast<uint64_t>(static_cast<int64_t>(indexes[i])) >= count_)
      throw std::invalid_argument("indexes must lie in [0, " + std::to_string(count_) + "), not " +
                                  std::to_string(indexes[i]));
}

}  // namespace lora_comp::rans
