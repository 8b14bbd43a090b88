// Work on single rows: embedding, norms, rotation.
#pragma once

namespace ISA {

constexpr float kLeastRange = 1e-30f;  // of a row whose codes say more than 0: below it 255 / range could overflow

template <class Out>
inline void copy_row(Out* out, const float* x, int64_t size) {
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) store16(out + i, load(x + i));
    if (i < size) store16_part(out + i, load_part(x + i, size - i), size - i);
}

// x += other, element by element.
template <class Other>
inline void add_row(float* x, const Other* other, int64_t size) {
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) store(x + i, add(load(x + i), load16(other + i)));
    if (i < size) store_part(x + i, add(load_part(x + i, size - i), load16_part(other + i, size - i)), size - i);
}

// Sum of (x - shift)^power over the row: sixteen running sums, then those in a fixed tree.
template <bool SQUARE>
inline float sum_row(const float* x, float shift, int64_t size) {
    F16 sum = zero();
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) {
        const F16 centred = sub(load(x + i), fill(shift));
        sum = SQUARE ? fma(centred, centred, sum) : add(sum, centred);
    }
    if (i < size) {
        float shifts[16];
        store(shifts, fill(shift));
        const F16 centred = sub(load_part(x + i, size - i), load_part(shifts, size - i));
        sum = SQUARE ? fma(centred, centred, sum) : add(sum, centred);
    }
    return sum_lanes(sum);
}

// LayerNorm where the norm has a bias, else RMSNorm. `out` may be `x`.
template <class Out>
inline void norm_row(Out* out, const float* x, const NormWeights& norm) {
    const auto size = static_cast<float>(norm.size);
    const float mean = norm.bias ? sum_row<false>(x, 0.0f, norm.size) / size : 0.0f;
    const float variance = sum_row<true>(x, mean, norm.size) / size;
    const F16 scale = fill(1.0f / __builtin_sqrtf(variance + static_cast<float>(norm.epsilon)));
    for (int64_t i = 0; i < norm.size; i += 16) {
        const int64_t n = norm.size - i < 16 ? norm.size - i : 16;
        const F16 centred = mul(sub(load_part(x + i, n), fill(mean)), scale);
        const F16 bias = norm.bias ? load_part(norm.bias + i, n) : zero();
        store16_part(out + i, fma(centred, load_part(norm.weight + i, n), bias), n);
    }
}

// A row's least and greatest number, 0 among them. `size` is a multiple of 16.
struct Extent {
    float least, greatest;
    bool is_finite;
};
template <class E>
inline Extent extent_of(const E* x, int64_t size) {
    F16 least = zero(), greatest = zero(), finite = zero();
    for (int64_t i = 0; i < size; i += 16) {
        const F16 value = load16(x + i);
        least = min(least, value);
        greatest = max(greatest, value);
        finite = fma(value, zero(), finite);
    }
    const float total = sum_lanes(finite);
    return {-max_lanes(sub(zero(), least)), max_lanes(greatest), total == total};
}

// Integer codes 0..255 of a row, from its own least to its own greatest number, 0 among them and exact. `size` is a
// multiple of 16. What is not finite makes the scale not a number, as codes cannot say it.
template <class E>
inline CodeScale quantise_row(uint8_t* codes, const E* x, int64_t size) {
    const Extent extent = extent_of(x, size);
    const float range = extent.greatest - extent.least;
    const float inverse = range > kLeastRange ? 255.0f / range : 0.0f;
    const F16 offset = round_even(fill(-extent.least * inverse));
    for (int64_t i = 0; i < size; i += 16) {
        const F16 code = add(round_even(mul(load16(x + i), fill(inverse))), offset);
        store16(codes + i, min(max(code, zero()), fill(255.0f)));
    }
    if (!extent.is_finite) return {__builtin_nanf(""), 0};
    float lane[16];
    store(lane, offset);
    return {range / 255.0f, static_cast<int32_t>(lane[0])};
}

// Turns the pairs (i, i + head_dim / 2) by the row of the rotary table [2, head_dim / 2].
inline void rotate_row(float* x, const float* table, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i += 16) {
        const int64_t n = half - i < 16 ? half - i : 16;
        const F16 first = load_part(x + i, n), second = load_part(x + half + i, n);
        const F16 cosine = load_part(table + i, n), sine = load_part(table + half + i, n);
        store_part(x + i, sub(mul(first, cosine), mul(second, sine)), n);
        store_part(x + half + i, add(mul(second, cosine), mul(first, sine)), n);
    }
}

// NaN and infinities times zero are NaN, and a NaN outlives every sum.
inline bool is_finite_row(const float* x, int64_t size) {
    F16 sum = zero();
    for (int64_t i = 0; i < size; i += 16) sum = fma(load_part(x + i, size - i < 16 ? size - i : 16), zero(), sum);
    const float total = sum_lanes(sum);
    return total == total;
}

}  // namespace ISA
