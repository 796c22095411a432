// The instruction sets that kernels are compiled for, and which of them this machine has. Each set is named here alone.
#pragma once

#include <algorithm>
#include <atomic>

#ifdef __x86_64__
#define SIMD_AVX2 "avx2,fma,popcnt"
#ifdef __clang__
#define SIMD_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt"
#else  // GCC's own loops use but half the width unless it is told
#define SIMD_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt,prefer-vector-width=512"
#endif
#define SIMD_AVX512_BYTES SIMD_AVX512 ",avx512cd,avx512vbmi2,bmi2"  // moves bytes: Ice Lake, Zen 4 and later
#endif

namespace lora_comp::simd {

enum class Target { kPlain, kAvx2, kAvx512, kAvx512Bytes };

inline Target find_best() {
#ifdef __x86_64__
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bytes =
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2");
  if (avx2 && avx512) return bytes ? Target::kAvx512Bytes : Target::kAvx512;
  if (avx2) return Target::kAvx2;
#endif
  return Target::kPlain;
}

// The best that a kernel may take; a test may lower it.
inline std::atomic<Target>& most() {
  static std::atomic<Target> target{Target::kAvx512Bytes};
  return target;
}

// The best of this machine.
inline Target best() {
  static const Target found = find_best();
  return std::min(found, most().load(std::memory_order_relaxed));
}

template <class Function>
Function* choose(Function* plain, Function* avx2, Function* avx512) {
  if (best() >= Target::kAvx512) return avx512;
  if (best() >= Target::kAvx2) return avx2;
  return plain;
}

}  // namespace lora_comp::simd

// The function of this name that was compiled for the best instruction set of this machine: see foreach_target.hpp.
#ifdef __x86_64__
#define SIMD_BEST(function) ::lora_comp::simd::choose(&plain::function, &avx2::function, &avx512::function)
#else
#define SIMD_BEST(function) (&plain::function)
#endif
