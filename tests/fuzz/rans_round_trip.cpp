// Symbols made from any bytes: every kernel codes them to the same stream, every kernel reads them back, and the stream
// without its last byte is refused.
//
// Input: a byte for the tables, two for the number of symbols (little-endian), one of which 1 in 32 means many more
// (lanes and blocks), one for the share of symbols outside the tables, and the seed of the rest.
#include <vector>

#include "check.hpp"
#include "rans/rans.hpp"
#include "tables.hpp"

using namespace lora_comp::rans;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 5) return 0;
  const Arrays arrays(table_set(data[0]));
  const Tables tables = arrays.tables();
  const size_t n = (data[1] | static_cast<size_t>(data[2]) << 8) * (data[3] % 32 == 31 ? 5 : 1) >> data[3] % 8;
  Random random{};
  for (size_t i = 5; i < size; ++i) random.state = random.state * 257 + data[i];
  std::vector<int32_t> indexes(n);
  for (int32_t& index : indexes) index = static_cast<int32_t>(random.below(tables.count()));
  const std::vector<int32_t> symbols = random_symbols(random, tables, indexes, data[4]);

  const std::string coded = encode(symbols.data(), indexes.data(), n, tables, {1, "scalar"});
  const auto* const stream = reinterpret_cast<const uint8_t*>(coded.data());
  std::vector<int32_t> back(n);
  for (const std::string& kernel : kernels()) {
    const Engine engine{1u + data[3] / 128, kernel};
    CHECK(encode(symbols.data(), indexes.data(), n, tables, engine) == coded);
    std::fill(back.begin(), back.end(), 0);
    decode(stream, coded.size(), indexes.data(), n, tables, back.data(), engine);
    CHECK(back == symbols);
    if (n > 0)
      CHECK_THROWS(StreamError, decode(stream, coded.size() - 1, indexes.data(), n, tables, back.data(), engine));
  }
  return 0;
}
