// Products of bfloat16 numbers as loops, in place of csrc/simd/half.cpp: what the kernels do around them is tested
// where the processor has no instructions for them.
#include "simd/half.hpp"

#include <cstring>

#include "simd/targets.hpp"

namespace lora_comp::simd {
namespace {

float widened(uint32_t upper) {
  float value;
  std::memcpy(&value, &upper, sizeof value);
  return value;
}

}  // namespace

bool half_available() { return best() >= Target::kAvx512; }
HalfSession::HalfSession() : before_{} {}
HalfSession::~HalfSession() = default;

void multiply_half(const uint16_t* a, size_t row, const uint32_t* b, size_t inner, float* c, size_t rows,
                   size_t columns, const float* start) {
  for (size_t r = 0; r < rows; ++r)
    for (size_t i = 0; i < columns; ++i) {
      float sum = start ? start[r * columns + i] : 0.0f;
      for (size_t k = 0; k < inner; ++k) {
        const uint32_t pair = b[k / 2 * columns + i];
        sum += widened(static_cast<uint32_t>(a[r * row + k]) << 16) * widened(k % 2 ? pair & 0xffff0000u : pair << 16);
      }
      c[r * columns + i] = sum;
    }
}

}  // namespace lora_comp::simd
