// Sixteen float32 lanes and pairwise bf16 dots with AVX-512 (F, BW, VL, BF16), and bytes by fours (VNNI).
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "simd_lanes.h"

namespace ISA {

constexpr int kTileRows = 6;     // rows of accumulators a product tile holds in registers ...
constexpr int kTileVectors = 4;  // ... times vectors of 16 columns

using F16 = __m512;
using I16 = __m512i;     // sixteen int32 lanes
using Packed = __m512i;  // what a dot takes from the weights: 16 floats, 16 pairs of bf16 or 16 fours of int8
using Lane = __m512i;    // one row's element, pair or four in every lane

inline F16 zero() { return _mm512_setzero_ps(); }
inline F16 fill(float x) { return _mm512_set1_ps(x); }
inline F16 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F16 x) { _mm512_storeu_ps(p, x); }
inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline F16 load_part(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline void store_part(float* p, F16 x, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
inline F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
inline F16 sub(F16 a, F16 b) { return _mm512_sub_ps(a, b); }
inline F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
inline F16 div(F16 a, F16 b) { return _mm512_div_ps(a, b); }
inline F16 max(F16 a, F16 b) { return _mm512_max_ps(a, b); }
inline F16 min(F16 a, F16 b) { return _mm512_min_ps(a, b); }
inline F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
inline F16 round_even(F16 x) { return _mm512_roundscale_ps(x, 0); }
// Per lane: a < b ? yes : no.
inline F16 where_less(F16 a, F16 b, F16 yes, F16 no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
inline float sum_lanes(F16 x) { return sum_eight(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1))); }
inline float max_lanes(F16 x) { return max_eight(_mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1))); }
// x * 2^n for whole n in [-126, 127].
inline F16 scale_by_power(F16 x, F16 n) { return _mm512_scalef_ps(x, n); }

inline F16 load16(const float* p) { return load(p); }
inline F16 load16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline F16 load16_part(const float* p, int64_t n) { return load_part(p, n); }
inline F16 load16_part(const uint16_t* p, int64_t n) {
    const __m256i bits = _mm256_maskz_loadu_epi16(first_lanes(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline __m256i to_bfloat16(F16 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
inline void store16(float* p, F16 x) { store(p, x); }
inline void store16(uint16_t* p, F16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(x)); }
inline void store16_part(float* p, F16 x, int64_t n) { store_part(p, x, n); }
inline void store16_part(uint16_t* p, F16 x, int64_t n) { _mm256_mask_storeu_epi16(p, first_lanes(n), to_bfloat16(x)); }

// from[i] to the i-th pair, to its second number if `second`; the pair's other number stays as it is.
inline void store_in_pairs(uint16_t* pairs, const uint16_t* from, int64_t n, bool second) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), from));
    const __mmask32 places = 0x55555555u & static_cast<__mmask32>((uint64_t{1} << 2 * n) - 1u);
    if (second) _mm512_mask_storeu_epi16(pairs, places << 1, _mm512_slli_epi32(wide, 16));
    else _mm512_mask_storeu_epi16(pairs, places, wide);
}

inline Packed load_packed(const void* p) { return _mm512_loadu_si512(p); }
inline I16 load_ints(const void* p) { return _mm512_loadu_si512(p); }
inline void store_ints(void* p, I16 x) { _mm512_storeu_si512(p, x); }
inline I16 fill_ints(int32_t x) { return _mm512_set1_epi32(x); }
// a - b * c
inline I16 sub_product(I16 a, I16 b, I16 c) { return _mm512_sub_epi32(a, _mm512_mullo_epi32(b, c)); }
inline F16 to_float(I16 x) { return _mm512_cvtepi32_ps(x); }
// Whole numbers that fit.
inline void store16(uint8_t* p, F16 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
inline void store16(int8_t* p, F16 x) { store16(reinterpret_cast<uint8_t*>(p), x); }

inline Lane broadcast(const float* p) { return _mm512_castps_si512(_mm512_set1_ps(*p)); }
inline Lane broadcast(const uint16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
}
inline F16 dot(F16 sum, Packed w, Lane x, const float*) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum);
}
inline F16 dot(F16 sum, Packed w, Lane x, const uint16_t*) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
}
inline Lane broadcast(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}
inline Lane broadcast(const int8_t* p) { return broadcast(reinterpret_cast<const uint8_t*>(p)); }
// One side's bytes are unsigned, the other's signed: a row's are what its pointer says.
inline I16 dot(I16 sum, Packed w, Lane x, const uint8_t*) { return _mm512_dpbusd_epi32(sum, x, w); }
inline I16 dot(I16 sum, Packed w, Lane x, const int8_t*) { return _mm512_dpbusd_epi32(sum, w, x); }

}  // namespace ISA
