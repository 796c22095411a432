// Products of bfloat16 numbers, where the processor has instructions for them: Intel's AMX, eight tiles of 16 rows of
// 64 bytes and an instruction that multiplies two, or AVX-512 BF16 (Zen 4 and later, Cooper Lake), which adds the
// products of 16 pairs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lora_comp::simd {

// c (rows, columns) = a b + start, sums in float32: a (rows, inner) bfloat16, its rows `row` apart, b (inner, columns)
// with two of its rows in a word, low half first. Rows and columns are multiples of 16, inner of 32; start may be null.
void multiply_half(const uint16_t* a, size_t row, const uint32_t* b, size_t inner, float* c, size_t rows,
                   size_t columns, const float* start);

// Whether this machine has the instructions, and the system lets this process use them.
bool half_available();

// Sets AMX's tiles up for `multiply_half` on this thread, and leaves them as they were found.
class HalfSession {
 public:
  HalfSession();
  ~HalfSession();

 private:
  alignas(64) uint8_t before_[64];
};

}  // namespace lora_comp::simd
