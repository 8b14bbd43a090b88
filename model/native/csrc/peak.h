// As many dots as a product tile has sums, of inputs and weights that never leave the nearest cache: no product of
// this type is faster.
#pragma once

namespace ISA {

// Returns the multiplications and additions of one repeat.
template <class E>
int64_t peak_dots(int64_t repeats) {
    constexpr int64_t line = 16 * kPair<E>;
    alignas(64) E data[(kTileRows + kTileVectors) * line] = {};
    asm volatile("" : : "r"(data) : "memory");  // or the compiler would know the numbers, and compute nothing
    const E* rows[kTileRows];
    const E* columns[kTileVectors];
    for (int r = 0; r < kTileRows; ++r) rows[r] = data + r * line;
    for (int v = 0; v < kTileVectors; ++v) columns[v] = data + (kTileRows + v) * line;
    Sum<E> sums[kTileRows][kTileVectors];
    clear(sums);
    for (int64_t i = 0; i < repeats; ++i) accumulate_dot<kTileRows, kTileVectors, E>(sums, rows, 0, columns, 0);
    float out[kTileRows * kTileVectors * 16];
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < kTileVectors; ++v) store_sum(out + (r * kTileVectors + v) * 16, sums[r][v]);
    asm volatile("" : : "r"(out) : "memory");
    return 2 * line * kTileRows * kTileVectors;
}

}  // namespace ISA
