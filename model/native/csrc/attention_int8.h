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

// The rows of a tile in 16 bits: value = scale * (256 * high + low). Fours of all rows lie together, so that a dot finds
// them from one pointer: twelve would not fit the registers.
template <int R, class Byte>
struct TwoBytes {
    Byte* codes;  // [inputs / 4][high and low][R][4]
    float scales[R];
    int32_t high_sums[R], low_sums[R];  // of a row's bytes

    // Sixteen inputs of row r from input `at` on.
    void put(int r, int64_t at, F16 high, F16 low) {
        Byte bytes[2][16];
        store16(bytes[0], high);
        store16(bytes[1], low);
        for (int half = 0; half < 2; ++half)
            for (int four = 0; four < 4; ++four)
                __builtin_memcpy(codes + ((at / 4 + four) * 2 + half) * R * 4 + r * 4, bytes[half] + four * 4, 4);
    }
};

// Four inputs from `input` on, as accumulate_dot.
template <int R, int V, class Byte>
[[gnu::always_inline]] inline void accumulate_bytes(
    I16 (&sum)[2 * R][V], const TwoBytes<R, Byte>& rows, int64_t input, const Byte* const (&columns)[V], int64_t weight) {
    Packed w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) w[v] = load_packed(columns[v] + weight);
    const Byte* bytes = rows.codes + input * 2 * R;
#pragma GCC unroll 12
    for (int r = 0; r < 2 * R; ++r) {
        const Lane x = broadcast(bytes + r * 4);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = dot(sum[r][v], w[v], x, static_cast<const Byte*>(nullptr));
    }
}

// A query of `padded` numbers as row r: both bytes signed. Its scale is not a number if it is not finite.
template <int R, class E>
inline void quantise_query(const E* query, int64_t padded, int r, TwoBytes<R, int8_t>& out) {
    const Extent extent = extent_of(query, padded);
    const float largest = extent.greatest > -extent.least ? extent.greatest : -extent.least;
    const F16 inverse = fill(largest > kLeastRange ? 32512.0f / largest : 0.0f);
    F16 highs = zero(), lows = zero();  // whole numbers below 2^24
    for (int64_t i = 0; i < padded; i += 16) {
        const F16 code = round_even(mul(load16(query + i), inverse));
        // The quarter keeps the low byte in -128..127.
        const F16 high = round_even(mul(add(code, fill(0.25f)), fill(1.0f / 256.0f)));
        const F16 low = sub(code, mul(high, fill(256.0f)));
        out.put(r, i, high, low);
        highs = add(highs, high);
        lows = add(lows, low);
    }
    out.high_sums[r] = extent.is_finite ? static_cast<int32_t>(sum_lanes(highs)) : 0;
    out.low_sums[r] = extent.is_finite ? static_cast<int32_t>(sum_lanes(lows)) : 0;
    out.scales[r] = extent.is_finite ? largest / 32512.0f : __builtin_nanf("");
}

inline F16 join_bytes(I16 high, I16 low) { return fma(to_float(high), fill(256.0f), to_float(low)); }

// The sums of a tile as they leave its registers: see scale_sums.
template <int R, int V>
struct SumsOfBytes {
    alignas(64) int32_t sums[2 * R][V][16];

    [[gnu::always_inline]] void take(const I16 (&all)[2 * R][V]) {
#pragma GCC unroll 12
        for (int r = 0; r < 2 * R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) store_ints(sums[r][v], all[r][v]);
    }
    I16 high(int r, int v) const { return load_ints(sums[r][v]); }
    I16 low(int r, int v) const { return load_ints(sums[R + r][v]); }
};

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
            columns[v] = pages.keys<int8_t>(mine);
            soon[v] = pages.keys<char>(next);
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
            accumulate_bytes<R, V, int8_t>(sums, queries, line / kBlockSize, columns, line);
        }
        SumsOfBytes<R, V> all;
        all.take(sums);
        for (int v = 0; v < V && key + v * kBlockSize < tile.end_key; ++v) {
            const int64_t first = key + v * kBlockSize;
            const F16 key_scales = load(scales_of(c, pages.keys<uint8_t>(first)));
            for (int r = 0; r < R; ++r) {
                const I16 high = sub_product(all.high(r, v), fill_ints(kKeyZero), fill_ints(queries.high_sums[r]));
                const I16 low = sub_product(all.low(r, v), fill_ints(kKeyZero), fill_ints(queries.low_sums[r]));
                const F16 dots = mul(join_bytes(high, low), mul(key_scales, fill(queries.scales[r])));
                store(scores + r * c.space.max_keys + first - tile.first_key, mul(dots, fill(tile.scale)));
            }
        }
    }
}

// exp(score - maximum) times the key's value scale as row r, both bytes unsigned, and their scale over the sum of the
// weights. Leaves the numbers themselves in `scores`.
template <int R>
void weigh_codes(const HeadPages& pages, const QueryTile<R>& tile, float* scores, int r, TwoBytes<R, uint8_t>& out) {
    const int64_t count = tile.end_key - tile.first_key;
    F16 highest = fill(kHidden);
    for (int64_t i = 0; i < count; i += 16) highest = max(highest, load(scores + i));
    const F16 maximum = fill(max_lanes(highest));
    F16 sum = zero(), largest = zero();
    for (int64_t i = 0; i < count; i += 16) {
        const F16 weight = exp(sub(load(scores + i), maximum));
        const F16 scaled = mul(weight, load(scales_of(pages.c, pages.values<uint8_t>(tile.first_key + i))));
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
        out.put(r, i, high, sub(code, mul(high, fill(256.0f))));
    }
    out.scales[r] = (range / 65535.0f + sum_lanes(finite)) / total;
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
        for (int v = 0; v < V; ++v) columns[v] = pages.values<uint8_t>(key) + (dim + 16 * v) * 4;
#pragma GCC unroll 4
        for (int64_t i = 0; i < kBlockSize; i += 4)
            accumulate_bytes<R, V, uint8_t>(sums, weights, key - tile.first_key + i, columns, i * padded);
    }
    SumsOfBytes<R, V> all;
    all.take(sums);
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) {
            const int64_t first = dim + 16 * v, left = pages.c.model->head_dim - first;
            const F16 value = mul(join_bytes(all.high(r, v), all.low(r, v)), fill(weights.scales[r]));
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
    asked.codes = query_codes;
    for (int r = 0; r < R; ++r) quantise_query(queries[r], padded, r, asked);
    float* scores = c.space.scores + scratch;
    score_codes<R>(pages, tile, asked, scores);
    TwoBytes<R, uint8_t> weights;
    weights.codes = reinterpret_cast<uint8_t*>(c.space.weights) + 2 * scratch;
    for (int r = 0; r < R; ++r) {
        hide_keys(c, tile, r, scores + r * c.space.max_keys);
        report_row(c, tile, r, scores);
        weigh_codes(pages, tile, scores + r * c.space.max_keys, r, weights);
    }
    for (int64_t d = 0; d < padded; d += 16 * kCodeVectors<R>)
        value_code_vectors<R, kCodeVectors<R>, E>((padded - d) / 16, pages, tile, weights, d, outs);
}

}  // namespace ISA
