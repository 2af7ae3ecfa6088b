// int8 weights as floats, which hold them exactly: what lies in a panel for one step of its inputs (see gemm.h), and how it is read.
//
//   float32 inputs    a byte for each column, two's complement
//   bf16 inputs       64 bytes, two for each column, whose order and form are below: they differ by instruction set
//
// With AVX512 a byte is a sign and a magnitude below 128, and tables give both bytes of its bf16: a fifth of the instructions of a
// conversion by way of int32 and float32, which at few rows would take longer than the weights take to come from memory.
#pragma once

#include <array>
#include <bit>

#include "simd.h"

namespace quire {

#if defined(__AVX512VBMI__)

using Pairs = B32;

// Where the int8 of a column, 0 to 31, and of an input, 0 or 1, lies: an interleaving of low and high bytes by 128-bit lanes then leaves
// the first sixteen columns in one register and the others in a second one.
inline int64_t place_in_step(int64_t column, int64_t input) { return column % 16 / 4 * 16 + column / 16 * 8 + column % 4 * 2 + input; }
inline int8_t coded(int32_t value) { return int8_t(value < 0 ? 0x80 | -value : value); }

struct BytesOfMagnitudes {
    alignas(64) uint8_t low[128], high[128];
};

constexpr BytesOfMagnitudes bytes_of_magnitudes() {
    BytesOfMagnitudes bytes{};
    for (int i = 0; i < 128; i++) {
        uint32_t bits = std::bit_cast<uint32_t>(float(i));
        bytes.low[i] = uint8_t(bits >> 16);
        bytes.high[i] = uint8_t(bits >> 24);
    }
    return bytes;
}

inline constexpr BytesOfMagnitudes kBytesOfMagnitudes = bytes_of_magnitudes();

// A step of a panel: sixteen columns in each of the two.
inline void load_step(const int8_t* p, Pairs (&columns)[2]) {
    auto look_up = [](__m512i index, const uint8_t* table) {
        return _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
    };
    __m512i bytes = _mm512_loadu_si512(p);
    __m512i low = look_up(bytes, kBytesOfMagnitudes.low), high = look_up(bytes, kBytesOfMagnitudes.high);
    // high | (bytes & sign)
    high = _mm512_ternarylogic_epi64(high, bytes, _mm512_set1_epi8(-128), 0xf8);
    columns[0] = {_mm512_unpacklo_epi8(low, high)};
    columns[1] = {_mm512_unpackhi_epi8(low, high)};
}
inline void store_pairs(bf16* p, Pairs x) { _mm512_storeu_si512(p, x.v); }

inline void load_step(const int8_t* p, F16 (&columns)[2]) {
    for (int i = 0; i < 2; i++)
        columns[i] = {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(p + 16 * i))))};
}

#else

// Sixteen pairs as floats, which is what `dot_pairs` would make of them.
struct Pairs {
    F16 even, odd;
};

inline int64_t place_in_step(int64_t column, int64_t input) { return column * 2 + input; }
inline int8_t coded(int32_t value) { return int8_t(value); }

inline __m256 even_bytes(__m256i pairs) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(pairs, 24), 24)); }
inline __m256 odd_bytes(__m256i pairs) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(pairs, 8)); }
inline void load_step(const int8_t* p, Pairs (&columns)[2]) {
    for (int i = 0; i < 2; i++) {
        __m256i lo = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)(p + 32 * i)));
        __m256i hi = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)(p + 32 * i + 16)));
        columns[i] = {{even_bytes(lo), even_bytes(hi)}, {odd_bytes(lo), odd_bytes(hi)}};
    }
}
inline F16 dot_pairs(F16 acc, B32 a, Pairs b) {
    acc.lo = _mm256_fmadd_ps(odd(a.lo), b.odd.lo, acc.lo);
    acc.hi = _mm256_fmadd_ps(odd(a.hi), b.odd.hi, acc.hi);
    acc.lo = _mm256_fmadd_ps(even(a.lo), b.even.lo, acc.lo);
    acc.hi = _mm256_fmadd_ps(even(a.hi), b.even.hi, acc.hi);
    return acc;
}
inline __m256i join_pairs(__m256 even, __m256 odd) {
    return _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(even), 16), _mm256_castps_si256(odd));
}
inline void store_pairs(bf16* p, Pairs x) {
    _mm256_storeu_si256((__m256i*)p, join_pairs(x.even.lo, x.odd.lo));
    _mm256_storeu_si256((__m256i*)(p + 16), join_pairs(x.even.hi, x.odd.hi));
}

inline void load_step(const int8_t* p, F16 (&columns)[2]) {
    for (int i = 0; i < 2; i++) {
        __m128i bytes = _mm_loadu_si128((const __m128i*)(p + 16 * i));
        __m256i lo = _mm256_cvtepi8_epi32(bytes), hi = _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8));
        columns[i] = {_mm256_cvtepi32_ps(lo), _mm256_cvtepi32_ps(hi)};
    }
}

#endif

}  // namespace quire
