// Sixteen lanes in a register: AVX-512 with the byte expansion of VBMI2 (Ice Lake, Zen 4 and later).
#ifdef __x86_64__
#include <immintrin.h>

#include "../simd/targets.hpp"
#include "kernels.hpp"
#include "stream.hpp"

// Attributes in place of compiler flags: no inline function of the standard library gets compiled for AVX-512.
#define TARGET __attribute__((target(SIMD_AVX512_BYTES)))

namespace lora_comp::rans {
namespace {

constexpr size_t kWidth = 16;

TARGET inline __m512i gather(const uint32_t* base, __m512i positions) {
  return _mm512_i32gather_epi32(positions, base, 4);
}

// The masks of lanes with a first and with a second byte, shuffled: the bits of the bytes, two to a lane, in order.
TARGET inline uint32_t bytes_of(__mmask16 one, __mmask16 two) {
  return _pdep_u32(one, 0x55555555) | _pdep_u32(two, 0xaaaaaaaa);
}

TARGET size_t find(const Flat& flat, const int32_t* symbols, const int32_t* indexes, size_t n, uint32_t* bins,
                   Found& found) {
  const uint32_t* const tables = &flat.tables[0].first;
  __m512i bits = _mm512_setzero_si512();
  const size_t whole = n - n % kWidth;
  for (size_t i = 0; i < whole; i += kWidth) {
    const __m512i table = _mm512_slli_epi32(_mm512_loadu_si512(indexes + i), 2);
    const __m512i first = gather(tables, table);
    const __m512i escape = gather(tables + 1, table);
    const __m512i wanted = _mm512_sub_epi32(_mm512_loadu_si512(symbols + i), gather(tables + 2, table));
    const __mmask16 outside = _mm512_cmpge_epu32_mask(_mm512_sub_epi32(wanted, first), _mm512_sub_epi32(escape, first));
    for (unsigned rest = outside; rest != 0; rest &= rest - 1) {
      const size_t at = i + static_cast<size_t>(__builtin_ctz(rest));
      put_escape(found.escapes, symbols[at], flat.tables[static_cast<size_t>(indexes[at])]);
    }
    const __m512i bin = gather(flat.bins.data(), _mm512_mask_mov_epi32(wanted, outside, escape));
    _mm512_storeu_si512(bins + i, bin);
    // 16 - bit length of the last 16 bits
    const __m512i last = _mm512_and_si512(bin, _mm512_set1_epi32(0xffff));
    const __m512i zeros = _mm512_sub_epi32(_mm512_lzcnt_epi32(last), _mm512_set1_epi32(16));
    bits = _mm512_add_epi64(
        bits, _mm512_add_epi64(_mm512_and_si512(zeros, _mm512_set1_epi64(0xffffffff)), _mm512_srli_epi64(zeros, 32)));
  }
  found.bits += static_cast<uint64_t>(_mm512_reduce_add_epi64(bits));
  return whole;
}

TARGET inline void encode_vector(__m512i& x, const uint32_t* bins, uint8_t*& p) {
  const __m512i bin = _mm512_loadu_si512(bins);
  const __m512i last = _mm512_and_si512(bin, _mm512_set1_epi32(0xffff));
  const __mmask16 one = _mm512_cmpgt_epu32_mask(_mm512_srli_epi32(x, 16), last);
  const __mmask16 two = _mm512_mask_cmpgt_epu32_mask(one, _mm512_srli_epi32(x, 24), last);
  // The 16 bits of a lane: its first byte below its second, as a decoder takes them.
  const __m512i low = _mm512_and_si512(x, _mm512_set1_epi32(0xff));
  const __m512i next = _mm512_and_si512(_mm512_srli_epi32(x, 8), _mm512_set1_epi32(0xff));
  const __m512i taken = _mm512_mask_or_epi32(low, two, next, _mm512_slli_epi32(low, 8));
  const uint32_t mask = bytes_of(one, two);
  const __m256i packed = _mm256_maskz_compress_epi8(mask, _mm512_cvtepi32_epi16(taken));
  const unsigned count = static_cast<unsigned>(_mm_popcnt_u32(mask));
  p -= count;
  _mm256_mask_storeu_epi8(p, _bzhi_u32(0xffffffff, count), packed);
  x = _mm512_mask_srli_epi32(x, one, x, 8);
  x = _mm512_mask_srli_epi32(x, two, x, 8);
  // x / frequency is below 2^16, so that its float32 quotient is off by one at most.
  const __m512i frequency = _mm512_add_epi32(last, _mm512_set1_epi32(1));
  __m512i quotient = _mm512_cvttps_epu32(_mm512_div_ps(_mm512_cvtepu32_ps(x), _mm512_cvtepi32_ps(frequency)));
  __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, frequency));
  const __mmask16 above = _mm512_movepi32_mask(rest);  // negative
  quotient = _mm512_mask_sub_epi32(quotient, above, quotient, _mm512_set1_epi32(1));
  rest = _mm512_mask_add_epi32(rest, above, rest, frequency);
  const __mmask16 below = _mm512_cmpge_epi32_mask(rest, frequency);
  quotient = _mm512_mask_add_epi32(quotient, below, quotient, _mm512_set1_epi32(1));
  rest = _mm512_mask_sub_epi32(rest, below, rest, frequency);
  x = _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(quotient, 16), rest), _mm512_srli_epi32(bin, 16));
}

template <size_t kVectors>
TARGET size_t encode_groups(const uint32_t* bins, size_t n, Writer& out) {
  __m512i x[kVectors];
  for (size_t v = 0; v < kVectors; ++v) x[v] = _mm512_loadu_si512(out.states + v * kWidth);
  for (size_t i = n; i > 0; i -= kVectors * kWidth)
    for (size_t v = kVectors; v-- > 0;) encode_vector(x[v], bins + i - (kVectors - v) * kWidth, out.p);
  for (size_t v = 0; v < kVectors; ++v) _mm512_storeu_si512(out.states + v * kWidth, x[v]);
  return n;
}

size_t encode(const uint32_t* bins, size_t n, Writer& out) {
  return out.lanes == kWidth ? encode_groups<1>(bins, n, out) : encode_groups<2>(bins, n, out);
}

// Fills up the states below 2^24 from p.
TARGET inline void take_bytes(__m512i& x, const uint8_t*& p) {
  const __mmask16 one = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(1 << 24));
  const __mmask16 two = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(1 << 16));
  const uint32_t mask = bytes_of(one, two);
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m512i taken = _mm512_cvtepu16_epi32(_mm256_maskz_expand_epi8(mask, bytes));
  p += _mm_popcnt_u32(mask);
  x = _mm512_mask_or_epi32(x, one, _mm512_slli_epi32(x, 8), _mm512_and_si512(taken, _mm512_set1_epi32(0xff)));
  x = _mm512_mask_or_epi32(x, two, _mm512_slli_epi32(x, 8), _mm512_srli_epi32(taken, 8));
}

// One symbol of every lane, all registers in step: the lanes' gathers overlap, and one branch ends all searches.
template <size_t kVectors>
TARGET inline void decode_group(const Flat& flat, const int32_t* indexes, __m512i (&x)[kVectors], const uint8_t*& p,
                                int32_t* symbols, uint32_t& outside) {
  const Flat::Table* const tables = flat.tables.data();
  const uint32_t* const bins = flat.bins.data();
  const __m512i low16 = _mm512_set1_epi32(0xffff), one = _mm512_set1_epi32(1);
  __m512i table[kVectors], slot[kVectors], position[kVectors], bin[kVectors], rest[kVectors];
  __mmask16 beyond[kVectors];
  uint32_t any = 0;
  for (size_t v = 0; v < kVectors; ++v) {
    table[v] = _mm512_slli_epi32(_mm512_loadu_si512(indexes + v * kWidth), 2);
    slot[v] = _mm512_and_si512(x[v], low16);
    const __m512i buckets = gather(&tables->buckets, table[v]);
    const __m512i bucket = _mm512_srlv_epi32(slot[v], _mm512_and_si512(buckets, _mm512_set1_epi32(15)));
    position[v] = gather(flat.buckets.data(), _mm512_add_epi32(_mm512_srli_epi32(buckets, 4), bucket));
    bin[v] = gather(bins, position[v]);
    rest[v] = _mm512_sub_epi32(slot[v], _mm512_srli_epi32(bin[v], 16));
    beyond[v] = _mm512_cmpgt_epu32_mask(rest[v], _mm512_and_si512(bin[v], low16));
    any |= beyond[v];
  }
  while (any) {
    any = 0;
    for (size_t v = 0; v < kVectors; ++v) {
      position[v] = _mm512_mask_add_epi32(position[v], beyond[v], position[v], one);
      bin[v] = _mm512_mask_i32gather_epi32(bin[v], beyond[v], position[v], bins, 4);
      rest[v] = _mm512_sub_epi32(slot[v], _mm512_srli_epi32(bin[v], 16));
      beyond[v] = _mm512_mask_cmpgt_epu32_mask(beyond[v], rest[v], _mm512_and_si512(bin[v], low16));
      any |= beyond[v];
    }
  }
  outside = 0;
  for (size_t v = 0; v < kVectors; ++v) {
    _mm512_storeu_si512(symbols + v * kWidth, _mm512_add_epi32(position[v], gather(&tables->to_symbol, table[v])));
    outside |= static_cast<uint32_t>(_mm512_cmpeq_epi32_mask(position[v], gather(&tables->escape, table[v])))
               << v * kWidth;
    const __m512i frequency = _mm512_add_epi32(_mm512_and_si512(bin[v], low16), one);
    x[v] = _mm512_add_epi32(_mm512_mullo_epi32(frequency, _mm512_srli_epi32(x[v], 16)), rest[v]);
    take_bytes(x[v], p);
  }
}

template <size_t kVectors>
TARGET size_t decode_groups(const Flat& flat, const int32_t* indexes, size_t begin, size_t end, Reader& in,
                            int32_t* symbols, Escaped& escaped) {
  constexpr size_t kLanes = kVectors * kWidth;
  __m512i x[kVectors];
  for (size_t v = 0; v < kVectors; ++v) x[v] = _mm512_loadu_si512(in.states + v * kWidth);
  size_t i = begin;
  const uint8_t* p = in.p;
  for (; end - i >= kLanes && in.end - p >= static_cast<ptrdiff_t>(2 * kLanes); i += kLanes) {
    uint32_t outside;
    decode_group<kVectors>(flat, indexes + i, x, p, symbols + i, outside);
    for (; outside != 0; outside &= outside - 1) escaped.add(i + static_cast<size_t>(__builtin_ctz(outside)));
  }
  for (size_t v = 0; v < kVectors; ++v) _mm512_storeu_si512(in.states + v * kWidth, x[v]);
  in.p = p;
  return i - begin;
}

size_t decode(const Flat& flat, const int32_t* indexes, size_t begin, size_t end, Reader& in, int32_t* symbols,
              Escaped& escaped) {
  return in.lanes == kWidth ? decode_groups<1>(flat, indexes, begin, end, in, symbols, escaped)
                            : decode_groups<2>(flat, indexes, begin, end, in, symbols, escaped);
}

}  // namespace

const Kernel avx512{"avx512", simd::Target::kAvx512Bytes, kWidth, find, encode, decode};

}  // namespace lora_comp::rans
#endif
