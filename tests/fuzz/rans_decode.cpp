// Any bytes, decoded by every kernel: all of them refuse, or all find the same symbols, and these come back.
//
// Input: a byte for the tables, two for the number of symbols (little-endian), one for the pattern of tables, the
// stream.
#include <memory>
#include <vector>

#include "check.hpp"
#include "rans/rans.hpp"
#include "tables.hpp"

using namespace lora_comp::rans;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) return 0;
  static const std::vector<Arrays> sets = [] {
    std::vector<Arrays> made;
    for (unsigned kind = 0; kind < kTableSets; ++kind) made.emplace_back(table_set(kind));
    return made;
  }();
  const Tables tables = sets[data[0] % kTableSets].tables();
  const size_t n = data[1] | static_cast<size_t>(data[2]) << 8;
  std::vector<int32_t> indexes(n);
  for (size_t i = 0; i < n; ++i) indexes[i] = static_cast<int32_t>(i * data[3] % tables.count());
  const uint8_t* const stream = data + 4;
  const size_t length = size - 4;

  size_t refused = 0;
  std::vector<std::vector<int32_t>> found;
  for (const std::string& kernel : kernels()) {
    try {
      std::vector<int32_t> symbols(n);
      decode(stream, length, indexes.data(), n, tables, symbols.data(), {1, kernel});
      found.push_back(std::move(symbols));
    } catch (const StreamError&) {
      ++refused;
    }
  }
  CHECK(found.empty() || refused == 0);
  for (const auto& symbols : found) CHECK(symbols == found[0]);
  if (found.empty()) return 0;
  const std::string again = encode(found[0].data(), indexes.data(), n, tables);
  std::vector<int32_t> symbols(n);
  decode(reinterpret_cast<const uint8_t*>(again.data()), again.size(), indexes.data(), n, tables, symbols.data());
  CHECK(symbols == found[0]);
  return 0;
}
