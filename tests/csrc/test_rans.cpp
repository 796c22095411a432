// The coder under the sanitizers: every kernel, lanes, blocks and threads, and streams that are damaged.
#include <limits>
#include <memory>

#include "check.hpp"
#include "rans/rans.hpp"
#include "tables.hpp"

using namespace lora_comp::rans;

namespace {

constexpr int32_t kLowest = std::numeric_limits<int32_t>::min(), kHighest = std::numeric_limits<int32_t>::max();

std::string coded(const std::vector<int32_t>& symbols, const std::vector<int32_t>& indexes, const Tables& tables,
                  const Engine& engine = {}) {
  return encode(symbols.data(), indexes.data(), symbols.size(), tables, engine);
}

// From a copy of exactly the stream's size: a read beyond its end is one beyond an allocation.
std::vector<int32_t> decoded(const std::string& data, const std::vector<int32_t>& indexes, const Tables& tables,
                             const Engine& engine = {}) {
  const std::unique_ptr<uint8_t[]> bytes(new uint8_t[data.size()]);
  std::copy(data.begin(), data.end(), bytes.get());
  std::vector<int32_t> symbols(indexes.size());
  decode(bytes.get(), data.size(), indexes.data(), indexes.size(), tables, symbols.data(), engine);
  return symbols;
}

std::vector<int32_t> random_indexes(Random& random, size_t n, const Tables& tables) {
  std::vector<int32_t> indexes(n);
  for (int32_t& index : indexes) index = static_cast<int32_t>(random.below(tables.count()));
  return indexes;
}

// A number of symbols on either side of what each number of lanes and blocks begins with, under every set of tables.
void test_all_kernels_and_threads_round_trip() {
  Random random{1};
  for (unsigned kind = 0; kind < kTableSets; ++kind) {
    const Arrays arrays(table_set(kind));
    const Tables tables = arrays.tables();
    for (const size_t n : {0, 1, 31, 33, 2047, 4097, 16385, 70001, 280001}) {
      const auto indexes = random_indexes(random, n, tables);
      const auto symbols = random_symbols(random, tables, indexes, n % 3 ? 4 : 0);
      const std::string data = coded(symbols, indexes, tables, {1, "scalar"});
      for (const std::string& kernel : kernels()) {
        for (const unsigned threads : {1u, 3u}) {
          CHECK(coded(symbols, indexes, tables, {threads, kernel}) == data);
          CHECK(decoded(data, indexes, tables, {threads, kernel}) == symbols);
        }
      }
    }
  }
}

void test_values_at_the_ends_of_int32() {
  for (unsigned kind = 0; kind < kTableSets; ++kind) {
    const Arrays arrays(table_set(kind));
    const Tables tables = arrays.tables();
    std::vector<int32_t> symbols, indexes;
    for (size_t t = 0; t < tables.count(); ++t) {
      for (const int32_t symbol : {kLowest, kLowest + 1, -1, 0, 1, 1 << 20, kHighest - 1, kHighest}) {
        symbols.push_back(symbol);
        indexes.push_back(static_cast<int32_t>(t));
      }
    }
    CHECK(decoded(coded(symbols, indexes, tables), indexes, tables) == symbols);
  }
}

void test_a_cut_or_lengthened_stream_never_passes() {
  Random random{2};
  const Arrays arrays(table_set(5));
  const Tables tables = arrays.tables();
  const auto indexes = random_indexes(random, 300, tables);
  const std::string data = coded(random_symbols(random, tables, indexes, 20), indexes, tables);
  for (size_t size = 0; size < data.size(); ++size)
    CHECK_THROWS(StreamError, decoded(data.substr(0, size), indexes, tables));
  CHECK_THROWS(StreamError, decoded(data + '\0', indexes, tables));
  CHECK_THROWS(StreamError, decoded("x", {}, tables));
}

// Each kernel refuses what the others refuse, and reads what they read.
void test_damage_is_refused_or_gives_the_same_symbols_everywhere() {
  Random random{3};
  for (unsigned round = 0; round < 600; ++round) {
    const Arrays arrays(table_set(round));
    const Tables tables = arrays.tables();
    const auto indexes = random_indexes(random, round % 60 ? random.below(3000) + 1 : 40000, tables);
    std::string data = coded(random_symbols(random, tables, indexes, 8), indexes, tables);
    for (uint64_t edits = 1 + random.below(4); edits > 0; --edits) {
      const size_t front = random.below(4) ? data.size() : std::min<size_t>(data.size(), 8);
      data[random.below(front)] = static_cast<char>(random());
    }
    int refused = 0;
    std::vector<std::vector<int32_t>> found;
    for (const std::string& kernel : kernels()) {
      try {
        found.push_back(decoded(data, indexes, tables, {1 + round % 2 * 2, kernel}));
      } catch (const StreamError&) {
        ++refused;
      }
    }
    CHECK(found.empty() || refused == 0);
    for (const auto& symbols : found) CHECK(symbols == found[0]);
  }
}

// Heads that declare more blocks, escapes or lanes than the bytes can hold: refused before anything of that size is
// had.
void test_heads_that_lie() {
  const Arrays arrays(table_set(0));
  const Tables tables = arrays.tables();
  const std::vector<int32_t> indexes(1000);
  for (const std::string& head : {std::string("\xf0\xff\xff\xff\x7f"), std::string("\x06"), std::string("\x07"),
                                  std::string("\x10\xff\xff\xff\xff\x7f"), std::string("\x08\xff\xff\xff\xff\x7f"),
                                  std::string("\x80\x80\x80\x80\x80\x01"), std::string("\x05")}) {
    CHECK_THROWS(StreamError, decoded(head, indexes, tables));
    CHECK_THROWS(StreamError, decoded(head + std::string(64, '\x01'), indexes, tables));
    CHECK_THROWS(StreamError, decoded(head + std::string(64, '\xff'), indexes, tables));
  }
}

void test_wrong_tables_and_indexes() {
  const auto tables = [](std::vector<int32_t> cdf, int32_t size, int32_t offset) {
    return Tables(cdf.data(), &size, &offset, 1, cdf.size());
  };
  CHECK_THROWS(std::invalid_argument, tables({0, 30000, 30000, 65536}, 4, 0));
  CHECK_THROWS(std::invalid_argument, tables({1, 65536}, 2, 0));
  CHECK_THROWS(std::invalid_argument, tables({0, 65535}, 2, 0));
  CHECK_THROWS(std::invalid_argument, tables({0, -1, 65536}, 3, 0));
  CHECK_THROWS(std::invalid_argument, tables({0, 65536}, 3, 0));
  CHECK_THROWS(std::invalid_argument, tables({0, 65536}, kLowest, 0));
  CHECK_THROWS(std::invalid_argument, tables({0, 1, 65536}, 3, kHighest));
  const Arrays arrays(table_set(0));
  for (const int32_t index : {-1, 1, kLowest, kHighest}) {
    CHECK_THROWS(std::invalid_argument, coded({0}, {index}, arrays.tables()));
    CHECK_THROWS(std::invalid_argument, decoded("", {index}, arrays.tables()));
  }
  CHECK_THROWS(std::invalid_argument, coded({0}, {0}, arrays.tables(), {1, "neon"}));
}

}  // namespace

int main() {
  test_all_kernels_and_threads_round_trip();
  test_values_at_the_ends_of_int32();
  test_a_cut_or_lengthened_stream_never_passes();
  test_damage_is_refused_or_gives_the_same_symbols_everywhere();
  test_heads_that_lie();
  test_wrong_tables_and_indexes();
}
