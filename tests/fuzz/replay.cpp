// A fuzz target without libFuzzer: each file named on the command line, and seeded changes of it.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

#include "tables.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int count, char** files) {
  constexpr int kChanges = 10;
  for (int file = 1; file < count; ++file) {
    std::ifstream in(files[file], std::ios::binary);
    const std::vector<char> whole{std::istreambuf_iterator<char>(in), {}};
    lora_comp::rans::Random random{static_cast<uint64_t>(file)};
    for (int change = 0; change <= kChanges; ++change) {
      std::vector<uint8_t> bytes(whole.begin(), whole.end());
      for (uint64_t edits = change ? 1 + random.below(4) : 0; edits > 0 && !bytes.empty(); --edits) {
        const auto at = bytes.begin() + static_cast<ptrdiff_t>(random.below(bytes.size()));
        switch (random.below(3)) {
          case 0:
            *at = static_cast<uint8_t>(random());
            break;
          case 1:
            bytes.erase(at);
            break;
          default:
            bytes.insert(at, static_cast<uint8_t>(random()));
        }
      }
      const std::vector<uint8_t> exact(bytes);  // no room behind the last byte
      LLVMFuzzerTestOneInput(exact.data(), exact.size());
    }
  }
  std::printf("%d files and %d changes of each: nothing found\n", count - 1, kChanges);
}
