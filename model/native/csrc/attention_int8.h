// Attention over pages of int8 codes. Keys and values have 8 bits and a scale per token and kv head; queries and
// weights get 16 bits, as two bytes that each meet the same codes, so that the cache's own rounding is all there is.
// Sums are of whole numbers and exact, hence the same for a row whoever is in its tile.
#pragma once

namespace ISA {

// Vectors beside R rows of two bytes each.
template <int R>
constexpr int kCodeVectors = kTileRows * kTileVectors / (2 * R) < 1               ? 1
                             : kTileRows * kTileVectors / (2 * R) < kTileVectors ? kTileRows * kTileVectors / (2 * R)
                                                                                 : kTileVectors;

// value = scale * (256 * high + low), row by row.
template <int R, class Byte>
struct TwoBytes {
    const Byte* rows[2 * R];  // high bytes, then low ones
    float scales[R];
    int32_t sums[2 * R];  // of each row's bytes
};

// A query in 16 bits to `codes` [2, padded]: both bytes signed, their sums, and the scale, which is not a number for a
// query that is not finite.
template <class E>
inline float quantise_query(const E* query, int8_t* codes, int64_t padded, int32_t* high_sum, int32_t* low_sum) {
    const Extent extent = extent_of(query, padded);
    const float largest = extent.greatest > -extent.least ? extent.greatest : -extent.least;
    const F16 inverse = fill(largest > kLeastRange ? 32512.0f / largest : 0.0f);
    F16 highs = zero(), lows = zero();  // whole numbers below 2^24
    for (int64_t i = 0; i < padded; i += 16) {
        const F16 code = round_even(mul(load16(query + i), inverse));
        // The quarter keeps the low byte in -128..127.
        const F16 high = round_even(mul(add(code, fill(0.25f)), fill(1.0f / 256.0f)));
        const F16 low = sub(code, mul(high, fill(256.0f)));
        store16(codes + i, high);
        store16(codes + padded + i, low);
        highs = add(highs, high);
        lows = add(lows, low);
    }
    *high_sum = extent.is_finite ? static_cast<int32_t>(sum_lanes(highs)) : 0;
    *low_sum = extent.is_finite ? static_cast<int32_t>(sum_lanes(lows)) : 0;
    return extent.is_finite ? largest / 32512.0f : __builtin_nanf("");
}

inline F16 join_bytes(I16 high, I16 low) { return fma(to_float(high), fill(256.0f), to_float(low)); }

// Returns to scores[r][key - first_key].
template <int R>
void score_codes(const HeadPages& pages, const QueryTile<R>& tile, const TwoBytes<R, int8_t>& queries, float* scores) {
    constexpr int V = kCodeVectors<R>;
    const StepContext& c = pages.c;
    const int64_t bytes = c.cache.padded_head_dim * kBlockSize;
    for (int64_t key = tile.first_key; key < tile.end_key; key += V * kBlockSize) {
        const int8_t* columns[V];
        const char* soon[V];
        for (int v = 0; v < V; ++v) {
            const int64_t mine = key + v * kBlockSize < tile.end_key ? key + v * kBlockSize : key;
            const int64_t next = mine + V * kBlockSize < tile.end_key ? mine + V * kBlockSize : mine;
            columns[v] = reinterpret_cast<const int8_t*>(pages.keys(mine));
            soon[v] = reinterpret_cast<const char*>(pages.keys(next));
            __builtin_prefetch(soon[v] + bytes, 0, 2);
            __builtin_prefetch(columns[v] + c.cache.part_bytes + bytes, 0, 2);
        }
        I16 sums[2 * R][V];
        clear(sums);
        for (int64_t line = 0; line < bytes; line += kBlockSize * 4) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                __builtin_prefetch(columns[v] + c.cache.part_bytes + line, 0, 2);
                __builtin_prefetch(soon[v] + line, 0, 2);
            }
            accumulate_dot<2 * R, V, int8_t>(sums, queries.rows, line / kBlockSize, columns, line);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                const int64_t first = key + v * kBlockSize;
                if (first >= tile.end_key) continue;
                const I16 high = sub_product(sums[r][v], fill_ints(kKeyZero), fill_ints(queries.sums[r]));
                const I16 low = sub_product(sums[R + r][v], fill_ints(kKeyZero), fill_ints(queries.sums[R + r]));
                const F16 key_scales = load(scales_of(c, pages.keys(first)));
                const F16 dots = mul(join_bytes(high, low), mul(key_scales, fill(queries.scales[r])));
                store(scores + r * c.space.max_keys + first - tile.first_key,
                      visible_scores(dots, c, first, tile.positions[r], tile.slopes[r]));
            }
    }
}

// exp(score - maximum) times the key's value scale, in 16 bits to `codes` [2, max_keys]. Returns the codes' scale over
// the sum of the weights. Leaves the numbers themselves in `scores`.
template <int R>
float weigh_codes(const HeadPages& pages, const QueryTile<R>& tile, float* scores, uint8_t* codes) {
    const int64_t count = tile.end_key - tile.first_key;
    F16 highest = fill(kHidden);
    for (int64_t i = 0; i < count; i += 16) highest = max(highest, load(scores + i));
    const F16 maximum = fill(max_lanes(highest));
    F16 sum = zero(), largest = zero();
    for (int64_t i = 0; i < count; i += 16) {
        const F16 weight = exp(sub(load(scores + i), maximum));
        const F16 scaled = mul(weight, load(scales_of(pages.c, pages.values(tile.first_key + i))));
        sum = add(sum, weight);
        largest = max(largest, scaled);
        store(scores + i, scaled);
    }
    const float range = max_lanes(largest), total = sum_lanes(sum);
    const F16 inverse = fill(range > kLeastRange ? 65535.0f / range : 0.0f);
    F16 finite = zero();
    for (int64_t i = 0; i < count; i += 16) {
        const F16 scaled = load(scores + i), code = min(round_even(mul(scaled, inverse)), fill(65535.0f));
        const F16 high = round_even(mul(sub(code, fill(127.75f)), fill(1.0f / 256.0f)));
        finite = fma(scaled, zero(), finite);
        store16(codes + i, high);
        store16(codes + pages.c.space.max_keys + i, sub(code, mul(high, fill(256.0f))));
    }
    return (range / 65535.0f + sum_lanes(finite)) / total;
}

// kCodeVectors * 16 dimensions from `dim` on of the weighted values.
template <int R, int V, class E>
void value_codes(const HeadPages& pages, const QueryTile<R>& tile, const TwoBytes<R, uint8_t>& weights, int64_t dim,
                 E* const (&outs)[R]) {
    const int64_t padded = pages.c.cache.padded_head_dim;
    I16 sums[2 * R][V];
    clear(sums);
    for (int64_t key = tile.first_key; key < tile.end_key; key += kBlockSize) {
        const uint8_t* columns[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) columns[v] = pages.values(key) + (dim + 16 * v) * 4;
#pragma GCC unroll 4
        for (int64_t i = 0; i < kBlockSize; i += 4)
            accumulate_dot<2 * R, V, uint8_t>(sums, weights.rows, key - tile.first_key + i, columns, i * padded);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const int64_t first = dim + 16 * v, left = pages.c.model->head_dim - first;
            const F16 value = mul(join_bytes(sums[r][v], sums[R + r][v]), fill(weights.scales[r]));
            store16_part(outs[r] + first, value, left < 16 ? left : 16);
        }
}

template <int R, int V, class E>
inline void value_code_vectors(int64_t vectors, const HeadPages& pages, const QueryTile<R>& tile,
                               const TwoBytes<R, uint8_t>& weights, int64_t dim, E* const (&outs)[R]) {
    if (vectors >= V) return value_codes<R, V, E>(pages, tile, weights, dim, outs);
    if constexpr (V > 1) value_code_vectors<R, V - 1, E>(vectors, pages, tile, weights, dim, outs);
}

template <int R, class E>
void attend_codes(const HeadPages& pages, int64_t thread, const QueryTile<R>& tile, const E* const (&queries)[R],
                  E* const (&outs)[R]) {
    const StepContext& c = pages.c;
    const int64_t padded = c.cache.padded_head_dim, scratch = thread * kTileRows * c.space.max_keys;
    alignas(64) int8_t query_codes[R * 2 * kMaxHeadDim];
    TwoBytes<R, int8_t> asked;
    for (int r = 0; r < R; ++r) {
        int8_t* codes = query_codes + r * 2 * padded;
        asked.rows[r] = codes;
        asked.rows[R + r] = codes + padded;
        asked.scales[r] = quantise_query(queries[r], codes, padded, &asked.sums[r], &asked.sums[R + r]);
    }
    float* scores = c.space.scores + scratch;
    score_codes<R>(pages, tile, asked, scores);
    TwoBytes<R, uint8_t> weights;
    for (int r = 0; r < R; ++r) {
        uint8_t* codes = reinterpret_cast<uint8_t*>(c.space.weights) + 2 * (scratch + r * c.space.max_keys);
        weights.rows[r] = codes;
        weights.rows[R + r] = codes + c.space.max_keys;
        weights.scales[r] = weigh_codes(pages, tile, scores + r * c.space.max_keys, codes);
    }
    for (int64_t d = 0; d < padded; d += 16 * kCodeVectors<R>)
        value_code_vectors<R, kCodeVectors<R>, E>((padded - d) / 16, pages, tile, weights, d, outs);
}

}  // namespace ISA
