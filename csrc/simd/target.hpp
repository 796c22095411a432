// The instruction set that is being compiled for: what foreach_target.hpp says, or else what every machine has.
//
//   SIMD_TARGET  its namespace        SIMD_LANES  numbers of float32 in a vector
//   SIMD_BEGIN, SIMD_END  around every function that is to be compiled for it
//
// A header that is a part of kernels is read once for each set. In place of #pragma once it has a guard that
// SIMD_TOGGLE, which changes from set to set, opens again:
//
//   #if defined(LORA_COMP_NAME) == defined(SIMD_TOGGLE)
//   #ifdef LORA_COMP_NAME
//   #undef LORA_COMP_NAME
//   #else
//   #define LORA_COMP_NAME
//   #endif
#ifndef SIMD_TARGET
#define SIMD_TARGET plain
#define SIMD_LANES 4
#define SIMD_BEGIN
#define SIMD_END
#endif
