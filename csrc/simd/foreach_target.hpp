// Compiles a kernel's file once for each instruction set. The file says which it is and includes this first:
//
//   #define SIMD_FILE "gdn/cpu.cpp"
//   #include "../simd/foreach_target.hpp"
//
// Here it is included once for each set but the last, which every machine has: that is the file itself. Its functions
// stand between SIMD_BEGIN and SIMD_END in a namespace SIMD_TARGET, and what is there once, after #ifdef SIMD_ONCE.
#pragma once

// The standard library comes before the first set, so that no inline function of it is compiled for one.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "targets.hpp"

#define SIMD_PRAGMA(x) _Pragma(#x)
#ifdef __clang__
#define SIMD_FOR(set) SIMD_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define SIMD_END SIMD_PRAGMA(clang attribute pop)
#else
#define SIMD_FOR(set) SIMD_PRAGMA(GCC push_options) SIMD_PRAGMA(GCC target(set))
#define SIMD_END SIMD_PRAGMA(GCC pop_options)
#endif

#if defined(__x86_64__) && defined(SIMD_FILE)
#define SIMD_TARGET avx2
#define SIMD_LANES 8
#define SIMD_BEGIN SIMD_FOR(SIMD_AVX2)
#include SIMD_FILE

#undef SIMD_TARGET
#undef SIMD_LANES
#undef SIMD_BEGIN
#define SIMD_TOGGLE
#define SIMD_TARGET avx512
#define SIMD_LANES 16
#define SIMD_BEGIN SIMD_FOR(SIMD_AVX512)
#include SIMD_FILE

#undef SIMD_TARGET
#undef SIMD_LANES
#undef SIMD_BEGIN
#undef SIMD_TOGGLE
#endif

#undef SIMD_END
#define SIMD_ONCE
#include "target.hpp"
