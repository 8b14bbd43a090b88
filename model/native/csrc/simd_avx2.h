// Sixteen float32 lanes as two registers of eight, with AVX2 and FMA; bf16 pairs are widened before they are multiplied.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "simd_lanes.h"

namespace ISA {

constexpr int kTileRows = 4;
constexpr int kTileVectors = 1;

struct F16 {
    __m256 low, high;
};
struct Packed {
    __m256i low, high;
};
struct I16 {
    __m256i low, high;
};
using Lane = __m256i;

inline F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F16 fill(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
inline F16 load_part(const float* p, int64_t n) {
    float all[16] = {};
    __builtin_memcpy(all, p, static_cast<size_t>(n) * sizeof(float));
    return load(all);
}
inline void store_part(float* p, F16 x, int64_t n) {
    float all[16];
    store(all, x);
    __builtin_memcpy(p, all, static_cast<size_t>(n) * sizeof(float));
}
inline F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline F16 div(F16 a, F16 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline F16 fma(F16 a, F16 b, F16 c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline float sum_lanes(F16 x) { return sum_eight(_mm256_add_ps(x.low, x.high)); }
inline float max_lanes(F16 x) { return max_eight(_mm256_max_ps(x.low, x.high)); }
inline F16 round_even(F16 x) { return {_mm256_round_ps(x.low, 0), _mm256_round_ps(x.high, 0)}; }
inline F16 where_less(F16 a, F16 b, F16 yes, F16 no) {
    return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
inline __m256 power_of_two_half(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline F16 power_of_two(F16 n) { return {power_of_two_half(n.low), power_of_two_half(n.high)}; }
// x * 2^n for whole n in [-126, 127].
inline F16 scale_by_power(F16 x, F16 n) { return mul(x, power_of_two(n)); }

inline F16 load16(const float* p) { return load(p); }
inline __m256 widen(__m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }
inline F16 load16(const uint16_t* p) {
    return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline F16 load16_part(const float* p, int64_t n) { return load_part(p, n); }
inline F16 load16_part(const uint16_t* p, int64_t n) {
    uint16_t all[16] = {};
    __builtin_memcpy(all, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return load16(all);
}
// To nearest even, in the low 16 bits of each lane; a NaN stays one.
inline __m256i round_bfloat16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), nan), 16);
}
inline void store16(float* p, F16 x) { store(p, x); }
inline void store16(uint16_t* p, F16 x) {
    const __m256i mixed = _mm256_packus_epi32(round_bfloat16(x.low), round_bfloat16(x.high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xd8));
}
// from[i] to the i-th pair, to its second number if `second`; the pair's other number stays as it is.
inline void store_in_pairs(uint16_t* pairs, const uint16_t* from, int64_t n, bool second) {
    for (int64_t i = 0; i < n; ++i) pairs[2 * i + second] = from[i];
}
inline void store16_part(float* p, F16 x, int64_t n) { store_part(p, x, n); }
inline void store16_part(uint16_t* p, F16 x, int64_t n) {
    uint16_t all[16];
    store16(all, x);
    __builtin_memcpy(p, all, static_cast<size_t>(n) * sizeof(uint16_t));
}

inline I16 load_ints(const void* p) {
    const auto* halves = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline void store_ints(void* p, I16 x) {
    auto* halves = static_cast<__m256i*>(p);
    _mm256_storeu_si256(halves, x.low);
    _mm256_storeu_si256(halves + 1, x.high);
}
inline I16 fill_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I16 sub_product(I16 a, I16 b, I16 c) {
    return {_mm256_sub_epi32(a.low, _mm256_mullo_epi32(b.low, c.low)),
            _mm256_sub_epi32(a.high, _mm256_mullo_epi32(b.high, c.high))};
}
inline F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
// Whole numbers that fit.
inline __m256i to_words(F16 x) {
    const __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
    return _mm256_permute4x64_epi64(mixed, 0xd8);
}
inline void store16(uint8_t* p, F16 x) {
    const __m256i words = to_words(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline void store16(int8_t* p, F16 x) {
    const __m256i words = to_words(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

inline Packed load_packed(const void* p) {
    const auto* halves = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline Lane broadcast(const float* p) { return _mm256_castps_si256(_mm256_broadcast_ss(p)); }
inline Lane broadcast(const uint16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm256_set1_epi32(pair);
}
inline F16 dot(F16 sum, Packed w, Lane x, const float*) {
    const __m256 factor = _mm256_castsi256_ps(x);
    return {_mm256_fmadd_ps(_mm256_castsi256_ps(w.low), factor, sum.low),
            _mm256_fmadd_ps(_mm256_castsi256_ps(w.high), factor, sum.high)};
}
inline __m256 even(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 odd(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline F16 dot(F16 sum, Packed w, Lane x, const uint16_t*) {
    return {_mm256_fmadd_ps(odd(w.low), odd(x), _mm256_fmadd_ps(even(w.low), even(x), sum.low)),
            _mm256_fmadd_ps(odd(w.high), odd(x), _mm256_fmadd_ps(even(w.high), even(x), sum.high))};
}
inline Lane broadcast(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}
// In 16 bits first: vpmaddubsw would saturate.
inline __m256i dot_half(__m256i sum, __m256i with_sign, __m256i without) {
    const __m256i even_s = _mm256_srai_epi16(_mm256_slli_epi16(with_sign, 8), 8), odd_s = _mm256_srai_epi16(with_sign, 8);
    const __m256i even_u = _mm256_and_si256(without, _mm256_set1_epi16(0xff)), odd_u = _mm256_srli_epi16(without, 8);
    return _mm256_add_epi32(
        sum, _mm256_add_epi32(_mm256_madd_epi16(even_s, even_u), _mm256_madd_epi16(odd_s, odd_u)));
}
inline Lane broadcast(const int8_t* p) { return broadcast(reinterpret_cast<const uint8_t*>(p)); }
// One side's bytes are unsigned, the other's signed: a row's are what its pointer says.
inline I16 dot(I16 sum, Packed w, Lane x, const uint8_t*) {
    return {dot_half(sum.low, w.low, x), dot_half(sum.high, w.high, x)};
}
inline I16 dot(I16 sum, Packed w, Lane x, const int8_t*) {
    return {dot_half(sum.low, x, w.low), dot_half(sum.high, x, w.high)};
}

}  // namespace ISA
