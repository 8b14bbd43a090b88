// Attention over the pages in place, for a few query rows that share a kv head: scores of all keys block by block,
// one maximum, weights, then the weighted values block by block. A row's sums run over its keys from the oldest to
// the newest whoever is in the tile; keys a row may not see get weight 0, and adding 0 changes no bit.
#pragma once

namespace ISA {

// The keys of the unit that a thread attends to after this one: it fetches them meanwhile.
struct NextKeys {
    HeadPages pages;
    int64_t first, count;  // blocks

    // Of a key counted from the unit's first; of the first where there is none.
    const char* at(int64_t key) const {
        const int64_t block = key / kBlockSize;
        return pages.keys<char>((first + (block < count ? block : 0)) * kBlockSize);
    }
};

template <int R>
struct QueryTile {
    int64_t positions[R];
    float slopes[R];  // 0 without ALiBi
    float* watched[R];           // where the row's weights are told, or null
    int64_t first_key, end_key;  // whole blocks of 16 that any row sees
    float scale;                 // of a query times a key
    bool is_new;                 // see AttentionUnit
};

// Tells row r's weights if it is watched, from the scores of all rows.
template <int R>
inline void report_row(const StepContext& c, const QueryTile<R>& tile, int r, const float* scores) {
    if (!tile.watched[r]) return;
    report_attention(scores + r * c.space.max_keys, tile.first_key, tile.positions[r], tile.watched[r]);
}

// Sixteen scaled scores of the keys from `first` on: biased by distance, hidden where the row may not look.
inline F16 visible_scores(F16 scores, int64_t first, int64_t window, int64_t position, float slope) {
    alignas(64) static const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    // Distances are whole and far below 2^24, so exact in float32.
    const F16 distance = sub(fill(static_cast<float>(position - first)), load(lanes));
    if (slope != 0.0f) scores = sub(scores, mul(fill(slope), distance));
    scores = where_less(distance, zero(), fill(kHidden), scores);
    if (!window) return scores;
    return where_less(distance, fill(static_cast<float>(window)), scores, fill(kHidden));
}

// The same of all of row r's scores, in place. Without a window or a bias the blocks before its own stay as they are.
template <int R>
inline void hide_keys(const StepContext& c, const QueryTile<R>& tile, int r, float* scores) {
    const int64_t window = c.model->sliding_window, position = tile.positions[r];
    const bool sees_all = !window && tile.slopes[r] == 0.0f;
    const int64_t begin = sees_all ? (position + 1) / kBlockSize * kBlockSize : tile.first_key;
    for (int64_t key = begin; key < tile.end_key; key += kBlockSize) {
        float* block = scores + key - tile.first_key;
        store(block, visible_scores(load(block), key, window, position, tile.slopes[r]));
    }
}

// Scaled scores of V blocks from `key` on, to scores[r][key - first_key].
template <int R, int V, class E>
void score_tile(const HeadPages& pages, const QueryTile<R>& tile, const E* const (&queries)[R], int64_t key, float* scores) {
    const StepContext& c = pages.c;
    const int64_t steps = c.cache.padded_head_dim / kPair<E>, part = c.cache.part_bytes / static_cast<int64_t>(sizeof(E));
    const E* columns[V];
    const E* soon[V];
    for (int v = 0; v < V; ++v) {
        const int64_t next = key + (V + v) * kBlockSize;
        columns[v] = pages.keys<E>(key + v * kBlockSize);
        soon[v] = next < tile.end_key ? pages.keys<E>(next) : columns[v];
    }
    F16 sums[R][V];
    clear(sums);
    // Pages lie anywhere, which no processor foresees: fetch these keys' values and the next keys meanwhile. A dot
    // takes one cache line of every block.
    for (int64_t step = 0; step < steps; ++step) {
        const int64_t line = step * kBlockSize * kPair<E>;
        if (tile.is_new) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                __builtin_prefetch(columns[v] + part + line, 0, 2);
                __builtin_prefetch(soon[v] + line, 0, 2);
            }
        }
        accumulate_dot<R, V, E>(sums, queries, step * kPair<E>, columns, line);
    }
    const F16 scale = fill(tile.scale);
    float* out = scores + key - tile.first_key;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store(out + r * c.space.max_keys + v * kBlockSize, mul(sums[r][v], scale));
}

template <int R, int V, class E>
inline void score_vectors(int64_t vectors, const HeadPages& pages, const QueryTile<R>& tile,
                          const E* const (&queries)[R], int64_t key, float* scores) {
    if (vectors >= V) return score_tile<R, V, E>(pages, tile, queries, key, scores);
    if constexpr (V > 1) score_vectors<R, V - 1, E>(vectors, pages, tile, queries, key, scores);
}

// exp(score - maximum) in element type; returns one over their sum.
template <class E>
inline float softmax_row(const float* scores, E* weights, int64_t count) {
    F16 highest = fill(kHidden);
    for (int64_t i = 0; i < count; i += 16) highest = max(highest, load(scores + i));
    const F16 maximum = fill(max_lanes(highest));
    F16 sum = zero();
    for (int64_t i = 0; i < count; i += 16) {
        const F16 weight = exp(sub(load(scores + i), maximum));
        sum = add(sum, weight);
        store16(weights + i, weight);
    }
    return 1.0f / sum_lanes(sum);
}

// V * 16 dimensions from `dim` on of the weighted values.
template <int R, int V, class E>
void value_tile(const HeadPages& pages, const QueryTile<R>& tile, const NextKeys& following,
                const E* const (&weights)[R], const float (&factors)[R], int64_t dim, E* const (&outs)[R]) {
    F16 sums[R][V];
    clear(sums);
    const int64_t padded = pages.c.cache.padded_head_dim;
    for (int64_t key = tile.first_key; key < tile.end_key; key += kBlockSize) {
        const char* soon = following.at(key - tile.first_key) + dim * kBlockSize * static_cast<int64_t>(sizeof(E));
        const E* values = pages.values<E>(key);
        const E* columns[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) columns[v] = values + (dim + 16 * v) * kPair<E>;
#pragma GCC unroll 1
        for (int64_t i = 0; i < kBlockSize; i += kPair<E>, soon += V * 64) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) __builtin_prefetch(soon + v * 64, 0, 2);
            accumulate_dot<R, V, E>(sums, weights, key - tile.first_key + i, columns, i * padded);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const int64_t first = dim + 16 * v, left = pages.c.model->head_dim - first;
            store16_part(outs[r] + first, mul(sums[r][v], fill(factors[r])), left < 16 ? left : 16);
        }
}

template <int R, int V, class E>
inline void value_vectors(int64_t vectors, const HeadPages& pages, const QueryTile<R>& tile, const NextKeys& following,
                          const E* const (&weights)[R], const float (&factors)[R], int64_t dim, E* const (&outs)[R]) {
    if (vectors >= V) return value_tile<R, V, E>(pages, tile, following, weights, factors, dim, outs);
    if constexpr (V > 1) value_vectors<R, V - 1, E>(vectors, pages, tile, following, weights, factors, dim, outs);
}

// From pages of int8: attention_int8.h.
template <int R, class E>
void attend_codes(const HeadPages& pages, int64_t thread, const QueryTile<R>& tile, const E* const (&queries)[R],
                  E* const (&outs)[R]);

// From pages in element type.
template <int R, class E>
void attend_pages(const HeadPages& pages, int64_t thread, const QueryTile<R>& tile, const NextKeys& following,
                  const E* const (&queries)[R], E* const (&outs)[R]) {
    const StepContext& c = pages.c;
    const int64_t scratch = thread * kTileRows * c.space.max_keys, padded = c.cache.padded_head_dim;
    float* scores = c.space.scores + scratch;
    // kTileVectors blocks at a time, so that one row's sums are enough to fill the pipeline.
    for (int64_t key = tile.first_key; key < tile.end_key; key += kTileVectors * kBlockSize)
        score_vectors<R, kTileVectors, E>((tile.end_key - key) / kBlockSize, pages, tile, queries, key, scores);
    E* all_weights = reinterpret_cast<E*>(c.space.weights) + scratch;
    const E* weights[R];
    float factors[R];
    for (int r = 0; r < R; ++r) {
        float* mine = scores + r * c.space.max_keys;
        E* row_weights = all_weights + r * c.space.max_keys;
        hide_keys(c, tile, r, mine);
        factors[r] = softmax_row(mine, row_weights, tile.end_key - tile.first_key);
        weights[r] = row_weights;
        report_row(c, tile, r, scores);
    }
    for (int64_t d = 0; d < padded; d += 16 * kTileVectors)
        value_vectors<R, kTileVectors, E>((padded - d) / 16, pages, tile, following, weights, factors, d, outs);
}

template <int R, class E>
void attend_rows(const StepContext& c, int64_t thread, int64_t layer, const AttentionUnit& unit, const NextKeys& following) {
    const ModelWeights& m = *c.model;
    const PlacedSpan& span = c.spans[unit.span];
    const int64_t groups = m.num_heads / m.num_kv_heads, padded = c.cache.padded_head_dim, dim = m.head_dim;
    QueryTile<R> tile;
    const E* queries[R];
    E* outs[R];
    for (int r = 0; r < R; ++r) {
        const int64_t token = (unit.first + r) / groups, head = unit.kv_head * groups + (unit.first + r) % groups;
        const int64_t row = span.first_row + token;
        tile.positions[r] = span.start + token;
        tile.slopes[r] = m.alibi_slopes ? m.alibi_slopes[head] : 0.0f;
        float* watched = c.work->attention ? c.work->attention[row] : nullptr;
        tile.watched[r] = watched ? watched + (layer * m.num_heads + head) * (tile.positions[r] + 1) : nullptr;
        queries[r] = reinterpret_cast<const E*>(c.space.query) + (row * m.num_heads + head) * padded;
        outs[r] = reinterpret_cast<E*>(c.space.attended) + row * round_up(m.num_heads * dim, kPanel) + head * dim;
    }
    const int64_t oldest = m.sliding_window ? tile.positions[0] - m.sliding_window + 1 : 0;
    tile.first_key = (oldest > 0 ? oldest : 0) / kBlockSize * kBlockSize;
    tile.end_key = round_up(tile.positions[R - 1] + 1, kBlockSize);
    tile.scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
    tile.is_new = unit.is_new;
    const HeadPages pages = pages_of(c, layer, unit.kv_head, span.blocks);
    if (m.int8_cache) return attend_codes<R, E>(pages, thread, tile, queries, outs);
    attend_pages<R, E>(pages, thread, tile, following, queries, outs);
}

template <int R, class E>
inline void attend_height(const StepContext& c, int64_t thread, int64_t layer, const AttentionUnit& unit,
                          const NextKeys& following) {
    if (unit.count == R) return attend_rows<R, E>(c, thread, layer, unit, following);
    if constexpr (R > 1) attend_height<R - 1, E>(c, thread, layer, unit, following);
}

inline NextKeys next_keys(const StepContext& c, int64_t layer, const AttentionUnit& unit) {
    const int64_t window = c.model->sliding_window, groups = c.model->num_heads / c.model->num_kv_heads;
    const PlacedSpan& span = c.spans[unit.span];
    const int64_t position = span.start + unit.first / groups;
    const int64_t first = window && position >= window ? (position - window + 1) / kBlockSize : 0;
    return {pages_of(c, layer, unit.kv_head, span.blocks), first, position / kBlockSize + 1 - first};
}

template <class E>
void attention(const StepContext& c, const Team& team, int64_t layer, const Panels& upcoming) {
    const AttentionPlan& plan = layer + 1 < c.model->num_layers ? c.space.attention : c.space.last_attention;
    const auto units = [&](Range mine, int64_t thread) {
        for (int64_t i = mine.begin; i < mine.end; ++i)
            attend_height<kTileRows, E>(c, thread, layer, plan.units[i],
                                        next_keys(c, layer, plan.units[i + 1 < mine.end ? i + 1 : i]));
    };
    team.share(plan.count, units, upcoming);
}

}  // namespace ISA
