// Sixteen float32 lanes as a plain array: whatever the compiler makes of it, on any processor.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ISA {

constexpr int kTileRows = 2;
constexpr int kTileVectors = 1;

struct F16 {
    float lane[16];
};
struct Packed {
    uint32_t lane[16];
};
struct I16 {
    int32_t lane[16];
};
using Lane = uint32_t;

template <class Function>
inline F16 each_lane(Function function) {
    F16 out;
    for (int i = 0; i < 16; ++i) out.lane[i] = function(i);
    return out;
}
inline float from_bits(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}
inline uint32_t to_bits(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline F16 fill(float x) { return each_lane([=](int) { return x; }); }
inline F16 zero() { return fill(0.0f); }
inline F16 load(const float* p) { return each_lane([=](int i) { return p[i]; }); }
inline void store(float* p, F16 x) { __builtin_memcpy(p, x.lane, sizeof x.lane); }
inline F16 load_part(const float* p, int64_t n) { return each_lane([=](int i) { return i < n ? p[i] : 0.0f; }); }
inline void store_part(float* p, F16 x, int64_t n) { __builtin_memcpy(p, x.lane, static_cast<size_t>(n) * 4); }
inline F16 add(F16 a, F16 b) { return each_lane([&](int i) { return a.lane[i] + b.lane[i]; }); }
inline F16 sub(F16 a, F16 b) { return each_lane([&](int i) { return a.lane[i] - b.lane[i]; }); }
inline F16 mul(F16 a, F16 b) { return each_lane([&](int i) { return a.lane[i] * b.lane[i]; }); }
inline F16 div(F16 a, F16 b) { return each_lane([&](int i) { return a.lane[i] / b.lane[i]; }); }
inline F16 max(F16 a, F16 b) { return each_lane([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; }); }
inline F16 min(F16 a, F16 b) { return each_lane([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; }); }
inline F16 fma(F16 a, F16 b, F16 c) { return each_lane([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; }); }
// Adding and taking away 1.5 * 2^23 rounds |x| < 2^22 to a whole number, ties to even.
inline F16 round_even(F16 x) { return each_lane([&](int i) { return (x.lane[i] + 12582912.0f) - 12582912.0f; }); }
inline F16 where_less(F16 a, F16 b, F16 yes, F16 no) {
    return each_lane([&](int i) { return a.lane[i] < b.lane[i] ? yes.lane[i] : no.lane[i]; });
}
inline F16 power_of_two(F16 n) {
    return each_lane([&](int i) { return from_bits(static_cast<uint32_t>(static_cast<int32_t>(n.lane[i]) + 127) << 23); });
}
// x * 2^n for whole n in [-126, 127].
inline F16 scale_by_power(F16 x, F16 n) { return mul(x, power_of_two(n)); }

inline F16 load16(const float* p) { return load(p); }
inline F16 load16(const uint16_t* p) { return each_lane([=](int i) { return from_bits(uint32_t{p[i]} << 16); }); }
inline F16 load16_part(const float* p, int64_t n) { return load_part(p, n); }
inline F16 load16_part(const uint16_t* p, int64_t n) {
    return each_lane([=](int i) { return i < n ? from_bits(uint32_t{p[i]} << 16) : 0.0f; });
}
// To nearest even; a NaN stays one.
inline uint16_t round_bfloat16(float x) {
    const uint32_t bits = to_bits(x);
    return static_cast<uint16_t>(x != x ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
// from[i] to the i-th pair, to its second number if `second`; the pair's other number stays as it is.
inline void store_in_pairs(uint16_t* pairs, const uint16_t* from, int64_t n, bool second) {
    for (int64_t i = 0; i < n; ++i) pairs[2 * i + second] = from[i];
}
inline void store16_part(float* p, F16 x, int64_t n) { store_part(p, x, n); }
inline void store16_part(uint16_t* p, F16 x, int64_t n) {
    for (int i = 0; i < n; ++i) p[i] = round_bfloat16(x.lane[i]);
}
inline void store16(float* p, F16 x) { store(p, x); }
inline void store16(uint16_t* p, F16 x) { store16_part(p, x, 16); }

inline I16 load_ints(const void* p) {
    I16 out;
    __builtin_memcpy(out.lane, p, sizeof out.lane);
    return out;
}
inline void store_ints(void* p, I16 x) { __builtin_memcpy(p, x.lane, sizeof x.lane); }
inline I16 fill_ints(int32_t x) {
    I16 out;
    for (int i = 0; i < 16; ++i) out.lane[i] = x;
    return out;
}
inline I16 sub_product(I16 a, I16 b, I16 c) {
    for (int i = 0; i < 16; ++i) a.lane[i] -= b.lane[i] * c.lane[i];
    return a;
}
inline F16 to_float(I16 x) { return each_lane([&](int i) { return static_cast<float>(x.lane[i]); }); }
// Whole numbers that fit.
inline void store16(uint8_t* p, F16 x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(x.lane[i]);
}
inline void store16(int8_t* p, F16 x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.lane[i]);
}

inline Packed load_packed(const void* p) {
    Packed out;
    __builtin_memcpy(out.lane, p, sizeof out.lane);
    return out;
}
inline Lane broadcast(const float* p) { return to_bits(*p); }
inline Lane broadcast(const uint16_t* p) {
    uint32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return pair;
}
inline F16 dot(F16 sum, Packed w, Lane x, const float*) {
    return each_lane([&](int i) { return sum.lane[i] + from_bits(w.lane[i]) * from_bits(x); });
}
inline float even(uint32_t pair) { return from_bits(pair << 16); }
inline float odd(uint32_t pair) { return from_bits(pair & 0xffff0000u); }
inline F16 dot(F16 sum, Packed w, Lane x, const uint16_t*) {
    return each_lane([&](int i) { return sum.lane[i] + even(w.lane[i]) * even(x) + odd(w.lane[i]) * odd(x); });
}
inline Lane broadcast(const uint8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return four;
}
inline Lane broadcast(const int8_t* p) { return broadcast(reinterpret_cast<const uint8_t*>(p)); }
template <class Column, class Row>
inline I16 dot_bytes(I16 sum, Packed w, Lane x) {
    Column codes[64];
    Row inputs[4];
    __builtin_memcpy(codes, w.lane, sizeof codes);
    __builtin_memcpy(inputs, &x, sizeof inputs);
    for (int i = 0; i < 16; ++i)
        for (int part = 0; part < 4; ++part) sum.lane[i] += codes[4 * i + part] * inputs[part];
    return sum;
}
// One side's bytes are unsigned, the other's signed: a row's are what its pointer says.
inline I16 dot(I16 sum, Packed w, Lane x, const uint8_t*) { return dot_bytes<int8_t, uint8_t>(sum, w, x); }
inline I16 dot(I16 sum, Packed w, Lane x, const int8_t*) { return dot_bytes<uint8_t, int8_t>(sum, w, x); }

// In a tree: lane i with lane i + 8, then + 4, + 2 and + 1.
inline float sum_lanes(F16 x) {
    float lane[16];
    store(lane, x);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
}
inline float max_lanes(F16 x) {
    float lane[16];
    store(lane, x);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

}  // namespace ISA
