// Sixteen floats at a time, on AVX512 with BF16 or on AVX2 with FMA; the rest of this folder is written once, over these.
//
//   F16    sixteen float32 lanes
//   B32    sixteen pairs of bfloat16: lane i holds elements 2i and 2i + 1, as VDPBF16PS reads them
//   I16    sixteen int32 lanes
//   I8x64  sixteen quads of bytes: lane i holds elements 4i to 4i + 3, as VPDPBUSD reads them
//
// Every operation rounds as written: the files are compiled with -ffp-contract=off, so a sum is fused only by `fma`. A row's bits
// therefore do not depend on which instantiation of a template computed it.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace quire {

using bf16 = uint16_t;

inline float to_float(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline float to_float(float x) { return x; }

// To the nearest, ties to even; NaN stays NaN.
inline bf16 to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16((bits >> 16) | 0x40);
    return bf16((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

template <class T>
inline T from_float(float x);
template <>
inline float from_float<float>(float x) {
    return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
    return to_bf16(x);
}

#if defined(__AVX512F__) && defined(__AVX512BF16__)

#define QUIRE_ISA "avx512_bf16"
constexpr int kRegisters = 32;

struct F16 {
    __m512 v;
};
struct B32 {
    __m512i v;
};

inline F16 zero() { return {_mm512_setzero_ps()}; }
inline F16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F16 x) { _mm512_storeu_ps(p, x.v); }
inline __mmask16 first_lanes(int n) { return __mmask16((1u << n) - 1); }
// The first n lanes, 0 <= n < 16; the others read as 0 and are not written.
inline F16 load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void store_first(float* p, F16 x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }
inline F16 load(const bf16* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
inline F16 load_first(const bf16* p, int n) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p)), 16))};
}
inline void store(bf16* p, F16 x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x.v)); }
inline void store_first(bf16* p, F16 x, int n) {
    _mm256_mask_storeu_epi16(p, first_lanes(n), (__m256i)_mm512_cvtneps_pbh(x.v));
}
inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
// a * b + c, rounded once.
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 round_nearest(F16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// x * 2^n for integral n; 0 below the normal numbers.
inline F16 scale_by_power(F16 x, F16 n) { return {_mm512_scalef_ps(x.v, n.v)}; }
inline float sum(F16 a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(F16 a) { return _mm512_reduce_max_ps(a.v); }
// Lanes low <= i < high of x, the others of `other`; 0 <= low, high <= 16, either order.
inline F16 keep_lanes(F16 x, int low, int high, F16 other) {
    __mmask16 kept = __mmask16(first_lanes(high) & ~first_lanes(low));
    return {_mm512_mask_blend_ps(kept, other.v, x.v)};
}

inline B32 load_pairs(const bf16* p) { return {_mm512_loadu_si512(p)}; }
// One pair in every lane; p need not be aligned.
inline B32 set1_pair(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return {_mm512_set1_epi32(pair)};
}
// acc + a[2i + 1] * b[2i + 1] + a[2i] * b[2i], in float32; denormals count as 0.
inline F16 dot_pairs(F16 acc, B32 a, B32 b) { return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)}; }

struct I16 {
    __m512i v;
};
struct I8x64 {
    __m512i v;
};

inline I16 zero_int() { return {_mm512_setzero_si512()}; }
inline I16 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline I16 operator-(I16 a, I16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline F16 to_floats(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Sixteen bytes, each lane rounded to the nearest and clamped to [0, 255].
inline void store_bytes(uint8_t* p, F16 x) {
    __m512i ints = _mm512_max_epi32(_mm512_cvtps_epi32(x.v), _mm512_setzero_si512());
    _mm_storeu_si128((__m128i*)p, _mm512_cvtusepi32_epi8(ints));
}
inline I8x64 load_quads(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
// One quad in every lane; p need not be aligned.
inline I8x64 set1_quad(const uint8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, 4);
    return {_mm512_set1_epi32(quad)};
}
// acc + the four products of a lane, exact; a unsigned, b signed.
inline I16 dot_quads(I16 acc, I8x64 a, I8x64 b) { return {_mm512_dpbusd_epi32(acc.v, a.v, b.v)}; }

#elif defined(__AVX2__) && defined(__FMA__)

#define QUIRE_ISA "avx2"
constexpr int kRegisters = 8;  // of sixteen lanes each

struct F16 {
    __m256 lo, hi;
};
struct B32 {
    __m256i lo, hi;
};

inline F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
inline F16 load_first(const float* p, int n) {
    alignas(32) float lanes[16] = {};
    std::memcpy(lanes, p, size_t(n) * 4);
    return load(lanes);
}
inline void store_first(float* p, F16 x, int n) {
    alignas(32) float lanes[16];
    store(lanes, x);
    std::memcpy(p, lanes, size_t(n) * 4);
}
inline __m256 widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline F16 load(const bf16* p) {
    return {widen(_mm_loadu_si128((const __m128i*)p)), widen(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline F16 load_first(const bf16* p, int n) {
    alignas(32) bf16 lanes[16] = {};
    std::memcpy(lanes, p, size_t(n) * 2);
    return load(lanes);
}
inline __m128i narrow(__m256 x) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i picked = _mm256_blendv_epi8(rounded, quiet, is_nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(picked), _mm256_extracti128_si256(picked, 1));
}
inline void store(bf16* p, F16 x) {
    _mm_storeu_si128((__m128i*)p, narrow(x.lo));
    _mm_storeu_si128((__m128i*)(p + 8), narrow(x.hi));
}
inline void store_first(bf16* p, F16 x, int n) {
    alignas(32) bf16 lanes[16];
    store(lanes, x);
    std::memcpy(p, lanes, size_t(n) * 2);
}
inline F16 operator+(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline F16 round_nearest(F16 a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
inline __m256 power_of_two(__m256 n) {
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    biased = _mm256_max_epi32(biased, _mm256_setzero_si256());
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_min_epi32(biased, _mm256_set1_epi32(255)), 23));
}
inline F16 scale_by_power(F16 x, F16 n) {
    return {_mm256_mul_ps(x.lo, power_of_two(n.lo)), _mm256_mul_ps(x.hi, power_of_two(n.hi))};
}
inline float sum(F16 a) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, _mm256_add_ps(a.lo, a.hi));
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}
inline float largest(F16 a) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, _mm256_max_ps(a.lo, a.hi));
    float out = lanes[0];
    for (int i = 1; i < 8; i++) out = lanes[i] > out ? lanes[i] : out;
    return out;
}
inline F16 keep_lanes(F16 x, int low, int high, F16 other) {
    __m256i first = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), second = _mm256_add_epi32(first, _mm256_set1_epi32(8));
    auto kept = [&](__m256i lane) {
        __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(low), lane);
        return _mm256_castsi256_ps(_mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lane)));
    };
    return {_mm256_blendv_ps(other.lo, x.lo, kept(first)), _mm256_blendv_ps(other.hi, x.hi, kept(second))};
}

inline B32 load_pairs(const bf16* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 16))};
}
inline B32 set1_pair(const bf16* p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return {_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)};
}
inline __m256 even(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 odd(__m256i pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000u)))); }
inline F16 dot_pairs(F16 acc, B32 a, B32 b) {
    acc.lo = _mm256_fmadd_ps(odd(a.lo), odd(b.lo), acc.lo);
    acc.hi = _mm256_fmadd_ps(odd(a.hi), odd(b.hi), acc.hi);
    acc.lo = _mm256_fmadd_ps(even(a.lo), even(b.lo), acc.lo);
    acc.hi = _mm256_fmadd_ps(even(a.hi), even(b.hi), acc.hi);
    return acc;
}

struct I16 {
    __m256i lo, hi;
};
struct I8x64 {
    __m256i lo, hi;
};

inline I16 zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I16 load(const int32_t* p) { return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))}; }
inline I16 operator-(I16 a, I16 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline F16 to_floats(I16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline void store_bytes(uint8_t* p, F16 x) {
    __m256i words = _mm256_packus_epi32(_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline I8x64 load_quads(const int8_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline I8x64 set1_quad(const uint8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, 4);
    return {_mm256_set1_epi32(quad), _mm256_set1_epi32(quad)};
}
// Widened to 16 bits first: VPMADDUBSW would saturate.
inline __m256i dot_quads(__m256i acc, __m256i a, __m256i b) {
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
inline I16 dot_quads(I16 acc, I8x64 a, I8x64 b) { return {dot_quads(acc.lo, a.lo, b.lo), dot_quads(acc.hi, a.hi, b.hi)}; }

#else
#error "needs AVX512-BF16, or AVX2 with FMA"
#endif

// 2^x for x <= 1, within 2 units in the last place for x >= -126; 0 far below, whatever finite x. Polynomial of Cephes (exp2f).
inline F16 exp2(F16 x) {
    F16 n = round_nearest(x);
    F16 r = x - n;
    F16 p = set1(1.535336188319500e-4f);
    p = fma(p, r, set1(1.339887440266574e-3f));
    p = fma(p, r, set1(9.618437357674640e-3f));
    p = fma(p, r, set1(5.550332471162809e-2f));
    p = fma(p, r, set1(2.402264791363012e-1f));
    p = fma(p, r, set1(6.931472028550421e-1f));
    return scale_by_power(fma(p, r, set1(1.0f)), n);
}

// x as T would hold it.
template <class T>
inline F16 rounded(F16 x) {
    if constexpr (sizeof(T) == 4) return x;
    alignas(64) T lanes[16];
    store(lanes, x);
    return load(lanes);
}

// e^x, within 2 units in the last place for x in [-87, 88]; 0 below, +inf far above. Cephes' polynomial (S. Moshier, expf).
inline F16 exp(F16 x) {
    x = min(max(x, set1(-104.0f)), set1(89.0f));
    F16 n = round_nearest(x * set1(1.44269504088896341f));
    F16 r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F16 p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    return scale_by_power(fma(p, r * r, r) + set1(1.0f), n);
}

}  // namespace quire
