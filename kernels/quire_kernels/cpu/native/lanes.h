// Comparisons of simd.h's sixteen floats, and the counter-based noise that sampling adds to them.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): key the row's seed, counter (token id, output
// position, purpose, 0), first word taken. The words of sixteen adjacent ids are computed in 64-bit lanes, of which only the low half
// counts: multiplications read no more, so nothing has to be masked.
#pragma once

#include <cmath>

#include "simd.h"

namespace quire {

// Bit i stands for lane i.
using Mask = uint32_t;

inline Mask first_bits(int64_t n) { return n >= 16 ? 0xffffu : (1u << n) - 1; }

#if defined(__AVX512F__) && defined(__AVX512BF16__)

inline Mask greater(F16 a, F16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline Mask at_least(F16 a, F16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
inline Mask equal(F16 a, F16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline Mask is_nan(F16 a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }
// a where the mask has a bit, else b.
inline F16 pick(Mask mask, F16 a, F16 b) { return {_mm512_mask_blend_ps(__mmask16(mask), b.v, a.v)}; }

using Wide = __m512i;
constexpr int kWides = 2;  // of eight lanes: even ids, odd ids

inline Wide wide(uint32_t x) { return _mm512_set1_epi64(x); }
inline Wide times(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
inline Wide high(Wide a) { return _mm512_srli_epi64(a, 32); }
inline Wide xor3(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
inline void counters(uint32_t first, Wide out[kWides]) {
    out[0] = _mm512_add_epi64(wide(first), _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14));
    out[1] = _mm512_add_epi64(wide(first), _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15));
}
// The low words, as floats, in the order of their ids; rounded once.
inline F16 to_floats(const Wide words[kWides]) {
    return {_mm512_cvtepu32_ps(_mm512_mask_blend_epi32(0xaaaa, words[0], _mm512_slli_epi64(words[1], 32)))};
}

#else

inline Mask bits(__m256 lo, __m256 hi) { return Mask(_mm256_movemask_ps(lo)) | Mask(_mm256_movemask_ps(hi)) << 8; }
inline Mask greater(F16 a, F16 b) { return bits(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ)); }
inline Mask at_least(F16 a, F16 b) { return bits(_mm256_cmp_ps(a.lo, b.lo, _CMP_GE_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GE_OQ)); }
inline Mask equal(F16 a, F16 b) { return bits(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ)); }
inline Mask is_nan(F16 a) { return bits(_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)); }
inline __m256 spread_bits(Mask mask) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(mask)), lane), lane));
}
inline F16 pick(Mask mask, F16 a, F16 b) {
    return {_mm256_blendv_ps(b.lo, a.lo, spread_bits(mask)), _mm256_blendv_ps(b.hi, a.hi, spread_bits(mask >> 8))};
}

using Wide = __m256i;
constexpr int kWides = 4;  // of four lanes: even and odd ids of the first eight, then of the last eight

inline Wide wide(uint32_t x) { return _mm256_set1_epi64x(x); }
inline Wide times(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
inline Wide high(Wide a) { return _mm256_srli_epi64(a, 32); }
inline Wide xor3(Wide a, Wide b, Wide c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
inline void counters(uint32_t first, Wide out[kWides]) {
    for (int i = 0; i < kWides; i++) {
        int offset = (i >> 1) * 8 + (i & 1);
        out[i] = _mm256_add_epi64(wide(first), _mm256_setr_epi64x(offset, offset + 2, offset + 4, offset + 6));
    }
}
inline __m256 unsigned_to_floats(__m256i x) {
    __m256 upper = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 16));
    __m256 lower = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)));
    return _mm256_fmadd_ps(upper, _mm256_set1_ps(65536.0f), lower);
}
inline F16 to_floats(const Wide words[kWides]) {
    __m256i lo = _mm256_blend_epi32(words[0], _mm256_slli_epi64(words[1], 32), 0xaa);
    __m256i hi = _mm256_blend_epi32(words[2], _mm256_slli_epi64(words[3], 32), 0xaa);
    return {unsigned_to_floats(lo), unsigned_to_floats(hi)};
}

#endif

constexpr uint32_t kPhiloxEven = 0xD2511F53u, kPhiloxOdd = 0xCD9E8D57u;
constexpr int kPhiloxRounds = 10;

// The noise of one row at one position.
class Philox {
   public:
    Philox(uint64_t seed, uint64_t position, uint32_t purpose) : position_(uint32_t(position)), purpose_(purpose) {
        for (int round = 0; round < kPhiloxRounds; round++) {
            k0_[round] = uint32_t(seed) + uint32_t(round) * 0x9E3779B9u;
            k1_[round] = uint32_t(seed >> 32) + uint32_t(round) * 0xBB67AE85u;
        }
    }

    uint32_t word(uint32_t id) const {
        uint32_t c0 = id, c1 = position_, c2 = purpose_, c3 = 0;
        for (int round = 0; round < kPhiloxRounds; round++) {
            uint64_t even = uint64_t(c0) * kPhiloxEven, odd = uint64_t(c2) * kPhiloxOdd;
            c0 = uint32_t(odd >> 32) ^ c1 ^ k0_[round];
            c1 = uint32_t(odd);
            c2 = uint32_t(even >> 32) ^ c3 ^ k1_[round];
            c3 = uint32_t(even);
        }
        return c0;
    }

    // The words of 16 * kGroups adjacent ids. Only the id differs between lanes, so half of the first two rounds is scalar.
    template <int kGroups>
    void words(uint32_t first, F16 out[kGroups]) const {
        constexpr int kCount = kGroups * kWides;
        const Wide even_factor = wide(kPhiloxEven), odd_factor = wide(kPhiloxOdd);
        uint64_t odd_first = uint64_t(purpose_) * kPhiloxOdd;
        uint64_t even_second = uint64_t(uint32_t(odd_first >> 32) ^ position_ ^ k0_[0]) * kPhiloxEven;
        Wide c0[kCount], c1[kCount], c2[kCount], c3[kCount];
        for (int g = 0; g < kGroups; g++) counters(first + 16u * uint32_t(g), c0 + g * kWides);
        for (int i = 0; i < kCount; i++) {
            Wide even = times(c0[i], even_factor);
            Wide odd = times(xor3(high(even), wide(0), wide(k1_[0])), odd_factor);
            c0[i] = xor3(high(odd), wide(uint32_t(odd_first)), wide(k0_[1]));
            c1[i] = odd;
            c2[i] = xor3(wide(uint32_t(even_second >> 32)), even, wide(k1_[1]));
            c3[i] = wide(uint32_t(even_second));
        }
        for (int round = 2; round < kPhiloxRounds - 1; round++) {
            const Wide k0 = wide(k0_[round]), k1 = wide(k1_[round]);
            for (int i = 0; i < kCount; i++) {
                Wide even = times(c0[i], even_factor), odd = times(c2[i], odd_factor);
                c0[i] = xor3(high(odd), c1[i], k0);
                c1[i] = odd;
                c2[i] = xor3(high(even), c3[i], k1);
                c3[i] = even;
            }
        }
        const Wide last = wide(k0_[kPhiloxRounds - 1]);
        for (int i = 0; i < kCount; i++) c0[i] = xor3(high(times(c2[i], odd_factor)), c1[i], last);
        for (int g = 0; g < kGroups; g++) out[g] = to_floats(c0 + g * kWides);
    }

   private:
    uint32_t position_, purpose_;
    uint32_t k0_[kPhiloxRounds], k1_[kPhiloxRounds];
};

// -log(-log(1 - v)) of v = min((word + 1/2) / 2^32, 1 - 2^-24), in float64, rounded to float32.
inline float gumbel_of_word(uint32_t word) {
    double v = (double(word) + 0.5) * 0x1p-32;
    if (v > 1 - 0x1p-24) v = 1 - 0x1p-24;
    return float(-std::log(-std::log1p(-v)));
}

}  // namespace quire
