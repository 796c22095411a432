// The rounding to bfloat16 of every instruction set: to the nearest, in the middle to even, and a NaN stays one.
#undef SIMD_FILE
#define SIMD_FILE "test_bf16.cpp"
#include "simd/foreach_target.hpp"

#include "simd/bf16.hpp"

SIMD_BEGIN
namespace lora_comp::simd::SIMD_TARGET {

void round_all(const float* from, size_t count, uint16_t* to) { narrow(from, count, to); }
void widen_all(const uint16_t* from, size_t count, float* to) { widen(from, count, to); }

}  // namespace lora_comp::simd::SIMD_TARGET
SIMD_END

#ifdef SIMD_ONCE
#include <cmath>
#include <vector>

#include "check.hpp"
#include "tables.hpp"

using namespace lora_comp;

namespace {

float of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void test(void (*round)(const float*, size_t, uint16_t*), void (*widen)(const uint16_t*, size_t, float*)) {
  rans::Random random{5};
  std::vector<float> values;
  for (const uint32_t upper : {0u, 0x3f80u, 0x3f81u, 0x7f7fu, 0x7f80u, 0xff80u, 0x8000u, 0x0001u})
    for (const uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      values.push_back(of_bits(upper << 16 | lower));
  for (size_t i = 0; i < 2003; ++i) values.push_back(of_bits(static_cast<uint32_t>(random())));
  std::vector<uint16_t> rounded(values.size());
  std::vector<float> back(values.size());
  round(values.data(), values.size(), rounded.data());
  widen(rounded.data(), rounded.size(), back.data());
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof bits);
    if (std::isnan(values[i])) {
      CHECK(std::isnan(back[i]));
      continue;
    }
    const uint32_t below = bits >> 16, rest = bits & 0xffff;
    const bool up = rest > 0x8000 || (rest == 0x8000 && below % 2 == 1);
    CHECK(rounded[i] == static_cast<uint16_t>(below + up));
    CHECK(back[i] == of_bits(static_cast<uint32_t>(rounded[i]) << 16));
  }
}

}  // namespace

int main() {
  test(simd::plain::round_all, simd::plain::widen_all);
#ifdef __x86_64__
  if (simd::best() >= simd::Target::kAvx2) test(simd::avx2::round_all, simd::avx2::widen_all);
  if (simd::best() >= simd::Target::kAvx512) test(simd::avx512::round_all, simd::avx512::widen_all);
#endif
}
#endif
