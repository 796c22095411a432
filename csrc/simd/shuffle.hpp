// Rows of vectors turned into columns, for vectors of any type and width.
#pragma once

#include <cstddef>
#include <utility>

// A function without an instruction set of its own: it is compiled anew into each caller, which has one.
#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))  // of a lambda

namespace lora_comp::simd {

// Of each pair of lanes kStep apart, the first of a and then the first of b; and the second ones.
template <size_t kStep, class Vector, size_t... kLane>
INLINE Vector firsts(const Vector& a, const Vector& b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, (kLane & kStep ? kLane - kStep + sizeof...(kLane) : kLane)...);
}

template <size_t kStep, class Vector, size_t... kLane>
INLINE Vector seconds(const Vector& a, const Vector& b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, (kLane & kStep ? kLane + sizeof...(kLane) : kLane + kStep)...);
}

// As many rows as lanes become as many columns.
template <size_t kStep = 1, class Vector, size_t kWidth>
INLINE void transpose(Vector (&rows)[kWidth]) {
  using Lanes = std::make_index_sequence<kWidth>;
  if constexpr (kStep < kWidth) {
    for (size_t i = 0; i < kWidth; ++i) {
      if (i & kStep) continue;
      const Vector first = firsts<kStep>(rows[i], rows[i + kStep], Lanes());
      rows[i + kStep] = seconds<kStep>(rows[i], rows[i + kStep], Lanes());
      rows[i] = first;
    }
    transpose<2 * kStep>(rows);
  }
}

}  // namespace lora_comp::simd
