// Eight lanes in a register: AVX2 (Haswell, Zen and later).
#ifdef __x86_64__
#include <immintrin.h>

#include "../simd/targets.hpp"
#include "kernels.hpp"
#include "stream.hpp"

// Attributes in place of compiler flags: no inline function of the standard library gets compiled for AVX2.
#define TARGET __attribute__((target(SIMD_AVX2)))

namespace lora_comp::rans {
namespace {

constexpr size_t kWidth = 8;

// For four lanes, bits 0 to 3 of a mask saying which have a first byte and bits 4 to 7 which have a second, where each
// byte is in the stream. `spread` puts the bytes into 32-bit lanes, the first lowest; `pack` puts them at the end of
// eight bytes.
struct Shuffles {
  uint8_t spread[256][16];
  uint8_t pack[256][16];

  constexpr Shuffles() : spread(), pack() {
    for (unsigned mask = 0; mask < 256; ++mask) {
      uint8_t from[8] = {}, count = 0;
      for (unsigned i = 0; i < 16; ++i) spread[mask][i] = 0x80;
      for (unsigned lane = 0; lane < 4; ++lane) {
        for (unsigned byte = 0; byte < 2; ++byte) {
          if (!(mask >> (lane + 4 * byte) & 1) || count == 8) continue;
          from[count] = static_cast<uint8_t>(4 * lane + byte);
          spread[mask][4 * lane + byte] = count++;
        }
      }
      for (unsigned i = 0; i < 16; ++i) pack[mask][i] = 0x80;
      for (unsigned i = 0; i < count; ++i) pack[mask][8 - count + i] = from[i];
    }
  }
};

constexpr Shuffles kShuffles;

TARGET inline __m256i gather(const uint32_t* base, __m256i positions) {
  return _mm256_i32gather_epi32(reinterpret_cast<const int*>(base), positions, 4);
}

TARGET inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

TARGET inline void store(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }

TARGET inline unsigned mask_of(__m256i lanes) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
}

// a > b without a sign
TARGET inline __m256i above(__m256i a, __m256i b) {
  return _mm256_andnot_si256(_mm256_cmpeq_epi32(a, b), _mm256_cmpeq_epi32(_mm256_max_epu32(a, b), a));
}

TARGET inline __m256i select(__m256i mask, __m256i yes, __m256i no) { return _mm256_blendv_epi8(no, yes, mask); }

TARGET size_t find(const Flat& flat, const int32_t* symbols, const int32_t* indexes, size_t n, uint32_t* bins,
                   Found& found) {
  const uint32_t* const tables = &flat.tables[0].first;
  __m256i bits = _mm256_setzero_si256();
  const size_t whole = n - n % kWidth;
  for (size_t i = 0; i < whole; i += kWidth) {
    const __m256i table = _mm256_slli_epi32(load(indexes + i), 2);
    const __m256i first = gather(tables, table);
    const __m256i escape = gather(tables + 1, table);
    const __m256i wanted = _mm256_sub_epi32(load(symbols + i), gather(tables + 2, table));
    const __m256i inside = above(_mm256_sub_epi32(escape, first), _mm256_sub_epi32(wanted, first));
    for (unsigned rest = ~mask_of(inside) & 0xff; rest != 0; rest &= rest - 1) {
      const size_t at = i + static_cast<size_t>(__builtin_ctz(rest));
      put_escape(found.escapes, symbols[at], flat.tables[static_cast<size_t>(indexes[at])]);
    }
    const __m256i bin = gather(flat.bins.data(), select(inside, wanted, escape));
    store(bins + i, bin);
    // The exponent of a float tells the bit length: 16 - length, for 0 too.
    const __m256 last = _mm256_cvtepi32_ps(_mm256_and_si256(bin, _mm256_set1_epi32(0xffff)));
    const __m256i exponent = _mm256_srli_epi32(_mm256_castps_si256(last), 23);
    const __m256i length = _mm256_max_epi32(_mm256_sub_epi32(exponent, _mm256_set1_epi32(126)), _mm256_setzero_si256());
    const __m256i free_bits = _mm256_sub_epi32(_mm256_set1_epi32(16), length);
    bits = _mm256_add_epi64(bits, _mm256_add_epi64(_mm256_and_si256(free_bits, _mm256_set1_epi64x(0xffffffff)),
                                                   _mm256_srli_epi64(free_bits, 32)));
  }
  uint64_t parts[4];
  store(parts, bits);
  found.bits += parts[0] + parts[1] + parts[2] + parts[3];
  return whole;
}

// Bits of four of the eight lanes, as Shuffles wants them.
TARGET inline unsigned half_of(unsigned one, unsigned two, unsigned half) {
  return (one >> 4 * half & 15) | (two >> 4 * half & 15) << 4;
}

TARGET inline __m128i shuffle(__m128i bytes, const uint8_t (&pattern)[16]) {
  return _mm_shuffle_epi8(bytes, _mm_loadu_si128(reinterpret_cast<const __m128i*>(pattern)));
}

// x without a sign to float32; one rounding.
TARGET inline __m256 to_float(__m256i x) {
  const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 16));
  const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)));
  return _mm256_add_ps(_mm256_mul_ps(high, _mm256_set1_ps(65536.0f)), low);
}

TARGET inline void encode_vector(__m256i& x, const uint32_t* bins, uint8_t*& p) {
  const __m256i bin = load(bins);
  const __m256i last = _mm256_and_si256(bin, _mm256_set1_epi32(0xffff));
  const __m256i one = _mm256_cmpgt_epi32(_mm256_srli_epi32(x, 16), last);
  const __m256i two = _mm256_cmpgt_epi32(_mm256_srli_epi32(x, 24), last);
  // The low 16 bits of a lane: its first byte below its second, as a decoder takes them.
  const __m256i swapped =
      _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(x, 8), _mm256_set1_epi32(0xff)), _mm256_slli_epi32(x, 8));
  const __m256i taken = select(two, swapped, x);
  const unsigned ones = mask_of(one), twos = mask_of(two);
  for (unsigned half = 2; half-- > 0;) {
    const unsigned mask = half_of(ones, twos, half);
    const __m128i lanes = half ? _mm256_extracti128_si256(taken, 1) : _mm256_castsi256_si128(taken);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p - 8), shuffle(lanes, kShuffles.pack[mask]));
    p -= _mm_popcnt_u32(mask);
  }
  x = select(one, _mm256_srli_epi32(x, 8), x);
  x = select(two, _mm256_srli_epi32(x, 8), x);
  // x / frequency is below 2^16, so that its float32 quotient is off by one at most.
  const __m256i frequency = _mm256_add_epi32(last, _mm256_set1_epi32(1));
  __m256i quotient = _mm256_cvttps_epi32(_mm256_div_ps(to_float(x), _mm256_cvtepi32_ps(frequency)));
  __m256i rest = _mm256_sub_epi32(x, _mm256_mullo_epi32(quotient, frequency));
  const __m256i too_large = _mm256_srai_epi32(rest, 31);  // -1 where the rest is negative
  quotient = _mm256_add_epi32(quotient, too_large);
  rest = _mm256_add_epi32(rest, _mm256_and_si256(too_large, frequency));
  const __m256i too_small = _mm256_cmpgt_epi32(rest, last);
  quotient = _mm256_sub_epi32(quotient, too_small);
  rest = _mm256_sub_epi32(rest, _mm256_and_si256(too_small, frequency));
  x = _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(quotient, 16), rest), _mm256_srli_epi32(bin, 16));
}

template <size_t kVectors>
TARGET size_t encode_groups(const uint32_t* bins, size_t n, Writer& out) {
  __m256i x[kVectors];
  for (size_t v = 0; v < kVectors; ++v) x[v] = load(out.states + v * kWidth);
  for (size_t i = n; i > 0; i -= kVectors * kWidth)
    for (size_t v = kVectors; v-- > 0;) encode_vector(x[v], bins + i - (kVectors - v) * kWidth, out.p);
  for (size_t v = 0; v < kVectors; ++v) store(out.states + v * kWidth, x[v]);
  return n;
}

size_t encode(const uint32_t* bins, size_t n, Writer& out) {
  switch (out.lanes / kWidth) {
    case 1:
      return encode_groups<1>(bins, n, out);
    case 2:
      return encode_groups<2>(bins, n, out);
    default:
      return encode_groups<4>(bins, n, out);
  }
}

// Fills up the states below 2^24 from p.
TARGET inline void take_bytes(__m256i& x, const uint8_t*& p) {
  const __m256i one = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 24), _mm256_setzero_si256());
  const __m256i two = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  const unsigned ones = mask_of(one), twos = mask_of(two);
  __m128i halves[2];
  for (unsigned half = 0; half < 2; ++half) {
    const unsigned mask = half_of(ones, twos, half);
    halves[half] = shuffle(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), kShuffles.spread[mask]);
    p += _mm_popcnt_u32(mask);
  }
  const __m256i taken = _mm256_set_m128i(halves[1], halves[0]);
  const __m256i first = _mm256_and_si256(taken, _mm256_set1_epi32(0xff));
  x = select(one, _mm256_or_si256(_mm256_slli_epi32(x, 8), first), x);
  x = select(two, _mm256_or_si256(_mm256_slli_epi32(x, 8), _mm256_srli_epi32(taken, 8)), x);
}

// One symbol of every lane, all registers in step: the lanes' gathers overlap, and one branch ends all searches.
template <size_t kVectors>
TARGET inline void decode_group(const Flat& flat, const int32_t* indexes, __m256i (&x)[kVectors], const uint8_t*& p,
                                int32_t* symbols, uint32_t& outside) {
  const Flat::Table* const tables = flat.tables.data();
  const uint32_t* const bins = flat.bins.data();
  const __m256i low16 = _mm256_set1_epi32(0xffff);
  __m256i table[kVectors], slot[kVectors], position[kVectors], bin[kVectors], rest[kVectors], beyond[kVectors];
  __m256i any = _mm256_setzero_si256();
  for (size_t v = 0; v < kVectors; ++v) {
    table[v] = _mm256_slli_epi32(load(indexes + v * kWidth), 2);
    slot[v] = _mm256_and_si256(x[v], low16);
    const __m256i buckets = gather(&tables->buckets, table[v]);
    const __m256i bucket = _mm256_srlv_epi32(slot[v], _mm256_and_si256(buckets, _mm256_set1_epi32(15)));
    position[v] = gather(flat.buckets.data(), _mm256_add_epi32(_mm256_srli_epi32(buckets, 4), bucket));
    bin[v] = gather(bins, position[v]);
    rest[v] = _mm256_sub_epi32(slot[v], _mm256_srli_epi32(bin[v], 16));
    beyond[v] = _mm256_cmpgt_epi32(rest[v], _mm256_and_si256(bin[v], low16));
    any = _mm256_or_si256(any, beyond[v]);
  }
  while (!_mm256_testz_si256(any, any)) {  // a lane that is not beyond is gathered once more and stays
    any = _mm256_setzero_si256();
    for (size_t v = 0; v < kVectors; ++v) {
      position[v] = _mm256_sub_epi32(position[v], beyond[v]);
      bin[v] = gather(bins, position[v]);
      rest[v] = _mm256_sub_epi32(slot[v], _mm256_srli_epi32(bin[v], 16));
      beyond[v] = _mm256_cmpgt_epi32(rest[v], _mm256_and_si256(bin[v], low16));
      any = _mm256_or_si256(any, beyond[v]);
    }
  }
  outside = 0;
  for (size_t v = 0; v < kVectors; ++v) {
    store(symbols + v * kWidth, _mm256_add_epi32(position[v], gather(&tables->to_symbol, table[v])));
    outside |= mask_of(_mm256_cmpeq_epi32(position[v], gather(&tables->escape, table[v]))) << v * kWidth;
    const __m256i frequency = _mm256_add_epi32(_mm256_and_si256(bin[v], low16), _mm256_set1_epi32(1));
    x[v] = _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srli_epi32(x[v], 16)), rest[v]);
    take_bytes(x[v], p);
  }
}

template <size_t kVectors>
TARGET size_t decode_groups(const Flat& flat, const int32_t* indexes, size_t begin, size_t end, Reader& in,
                            int32_t* symbols, Escaped& escaped) {
  constexpr size_t kLanes = kVectors * kWidth;
  __m256i x[kVectors];
  for (size_t v = 0; v < kVectors; ++v) x[v] = load(in.states + v * kWidth);
  size_t i = begin;
  const uint8_t* p = in.p;
  for (; end - i >= kLanes && in.end - p >= static_cast<ptrdiff_t>(2 * kLanes); i += kLanes) {
    uint32_t outside;
    decode_group<kVectors>(flat, indexes + i, x, p, symbols + i, outside);
    for (; outside != 0; outside &= outside - 1) escaped.add(i + static_cast<size_t>(__builtin_ctz(outside)));
  }
  for (size_t v = 0; v < kVectors; ++v) store(in.states + v * kWidth, x[v]);
  in.p = p;
  return i - begin;
}

size_t decode(const Flat& flat, const int32_t* indexes, size_t begin, size_t end, Reader& in, int32_t* symbols,
              Escaped& escaped) {
  switch (in.lanes / kWidth) {
    case 1:
      return decode_groups<1>(flat, indexes, begin, end, in, symbols, escaped);
    case 2:
      return decode_groups<2>(flat, indexes, begin, end, in, symbols, escaped);
    default:
      return decode_groups<4>(flat, indexes, begin, end, in, symbols, escaped);
  }
}

}  // namespace

const Kernel avx2{"avx2", simd::Target::kAvx2, kWidth, find, encode, decode};

}  // namespace lora_comp::rans
#endif
