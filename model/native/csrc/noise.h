// The noise of server/engine/noise.py to the bit: Philox4x32-10 words, and Gumbel noise by exactly rounded operations.
#pragma once
#include <cmath>
#include <cstdint>

#define INLINE static inline __attribute__((always_inline))

constexpr int64_t kLanes = 4;  // consecutive token ids that share one counter
constexpr double kLog2 = 0x1.62e42fefa39efp-1;

// One round's worth of key is added after each round (Salmon et al. 2011).
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;

struct NoiseKey {
    uint32_t low, high;  // of the seed
    uint32_t position;
};

// Words of `Count` consecutive counters from `first` on, words[lane][counter].
template <int Count>
INLINE void philox(const NoiseKey& key, uint32_t first, uint32_t (&words)[kLanes][Count]) {
    for (int i = 0; i < Count; ++i) {
        words[0][i] = first + static_cast<uint32_t>(i);
        words[1][i] = key.position;
        words[2][i] = words[3][i] = 0;
    }
    for (uint32_t round = 0; round < 10; ++round) {
        const uint32_t low = key.low + round * kWeyl0, high = key.high + round * kWeyl1;
        for (int i = 0; i < Count; ++i) {
            const uint64_t one = kMultiplier0 * words[0][i], two = kMultiplier1 * words[2][i];
            words[0][i] = static_cast<uint32_t>(two >> 32) ^ words[1][i] ^ low;
            words[2][i] = static_cast<uint32_t>(one >> 32) ^ words[3][i] ^ high;
            words[1][i] = static_cast<uint32_t>(two);
            words[3][i] = static_cast<uint32_t>(one);
        }
    }
}

// `noise.logarithm`, operation by operation.
INLINE double logarithm(double x) {
    int exponent;
    double mantissa = std::frexp(x, &exponent);
    const bool is_low = mantissa < 0x1.6a09e667f3bcdp-1;  // sqrt(1/2)
    if (is_low) mantissa *= 2.0;
    const double ratio = (mantissa - 1.0) / (mantissa + 1.0);
    const double square = ratio * ratio;
    double series = square * (1.0 / 21.0);
    for (int odd = 19; odd > 1; odd -= 2) series = (series + 1.0 / odd) * square;
    const double twice = ratio + ratio;
    series = series * twice + twice;
    return (exponent - (is_low ? 1.0 : 0.0)) * kLog2 + series;
}

INLINE double gumbel(uint32_t word) { return -logarithm(-logarithm((word + 0.5) * 0x1p-32)); }

inline double gumbel_of_token(const NoiseKey& key, int64_t token) {
    uint32_t words[kLanes][1];
    philox<1>(key, static_cast<uint32_t>(token / kLanes), words);
    return gumbel(words[token % kLanes][0]);
}

// At least gumbel(word) for vectors of words, and where that is large at most 0.06 more. With v = 1 - u it is -log(-log(1 - v)) <= -log v; and
// the bits of a float are, but for scale and offset, a lower bound of its logarithm, as log2(1 + m) >= m.
template <class Vector, class Words>
INLINE Vector gumbel_bound(const Words& words) {
    const Words bits = (Words)(__builtin_convertvector(~words, Vector) + 0.5f);
    return (159.0f - __builtin_convertvector(bits, Vector) * 0x1p-23f) * 0.693147181f + 1e-4f;
}
