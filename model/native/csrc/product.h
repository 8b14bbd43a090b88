// Rows times packed weights. Every output is one running sum over the inputs, first to last, whatever tile it falls
// in: tiles differ in how many rows they hold, never in the order of a sum.
#pragma once

namespace ISA {

template <class E>
constexpr int64_t kPair = 4 / static_cast<int64_t>(sizeof(E));  // inputs that one dot takes at a time

// sum[r][v] += rows[r] . columns[v] for one dot; the rows' inputs and the columns' weights of that dot.
template <int R, int V, class E>
[[gnu::always_inline]] inline void accumulate_dot(
    F16 (&sum)[R][V], const E* const (&rows)[R], int64_t input, const E* const (&columns)[V], int64_t weight) {
    Packed w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) w[v] = load_packed(columns[v] + weight);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const Lane x = broadcast(rows[r] + input);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = dot(sum[r][v], w[v], x, static_cast<const E*>(nullptr));
    }
}

template <int R, int V>
[[gnu::always_inline]] inline void clear(F16 (&sum)[R][V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = zero();
}

// Memory to fetch while a tile computes, so that neither waits for the other: `lines` cache lines per kChunk dots.
struct Ahead {
    const char* from;
    int64_t lines;
};
constexpr int64_t kChunk = 4;  // inputs are padded to whole chunks of dots

template <int R, class E>
void tile_product(const E* const* inputs, const E* panel, int64_t steps, Ahead ahead, float* out) {
    constexpr int64_t step_size = kPanel * kPair<E>;
    const E* rows[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) rows[r] = inputs[r];
    for (int64_t column = 0; column < kPanel; column += 16 * kTileVectors) {
        F16 sum[R][kTileVectors];
        clear(sum);
        const E* weights = panel + column * kPair<E>;
        const char* fetch = ahead.from;
        for (int64_t input = 0; input < steps * kPair<E>; input += kChunk * kPair<E>, weights += kChunk * step_size) {
            for (int64_t line = 0; line < ahead.lines; ++line, fetch += 64) __builtin_prefetch(fetch, 0, 2);
            const E* columns[kTileVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kTileVectors; ++v) columns[v] = weights + 16 * v * kPair<E>;
#pragma GCC unroll 4
            for (int64_t i = 0; i < kChunk; ++i)
                accumulate_dot<R, kTileVectors, E>(sum, rows, input + i * kPair<E>, columns, i * step_size);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < kTileVectors; ++v) store(out + r * kPanel + column + 16 * v, sum[r][v]);
    }
}

template <int R, class E>
inline void tile_of_height(int64_t height, const E* const* rows, const E* panel, int64_t steps, Ahead ahead, float* out) {
    if (height == R) return tile_product<R, E>(rows, panel, steps, ahead, out);
    if constexpr (R > 1) tile_of_height<R - 1, E>(height, rows, panel, steps, ahead, out);
}

// The rows a product reads: row r is input + index[r] * stride, or input + r * stride without an index.
template <class E>
struct InputRows {
    const E* input;
    int64_t stride;
    const int32_t* index;
    int64_t count;
};

inline int64_t num_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
inline int64_t num_units(const ProductWeights& weights, int64_t rows) {
    return weights.columns / kPanel * num_tiles(rows);
}

// Units [range) of a product, panel by panel and within one tile by tile. emit(row, column, sums[64]) takes each
// row's panel without its bias.
template <class E, class Emit>
void product_units(Range range, const ProductWeights& weights, const InputRows<E>& in, const Emit& emit) {
    const int64_t tiles = num_tiles(in.count), steps = weights.inputs / kPair<E>;
    const int64_t panel_size = kPanel * weights.inputs;
    // A lone tile runs into memory itself, where the processor's own prefetching is the best. Of several tiles, each
    // fetches its part of the next panel.
    const int64_t lines = tiles == 1 ? 0 : (4 * kChunk + tiles - 1) / tiles;
    const int64_t part = steps / kChunk * lines * 64, panel_bytes = panel_size * static_cast<int64_t>(sizeof(E));
    alignas(64) float sums[kTileRows * kPanel];
    for (int64_t unit = range.begin; unit < range.end; ++unit) {
        const int64_t panel = unit / tiles, tile = unit % tiles;
        const int64_t first = in.count * tile / tiles, last = in.count * (tile + 1) / tiles;
        const E* rows[kTileRows];
        for (int64_t r = first; r < last; ++r) rows[r - first] = in.input + (in.index ? in.index[r] : r) * in.stride;
        const E* packed = static_cast<const E*>(weights.packed) + panel * panel_size;
        const char* next = reinterpret_cast<const char*>(packed) + panel_bytes + tile * part;
        tile_of_height<kTileRows, E>(last - first, rows, packed, steps, {next, lines}, sums);
        for (int64_t r = first; r < last; ++r) emit(r, panel * kPanel, sums + (r - first) * kPanel);
    }
}

template <class E, class Emit>
void product(const Team& team, const ProductWeights& weights, const InputRows<E>& in, const Emit& emit) {
    team.share(num_units(weights, in.count), [&](Range mine, int64_t) { product_units(mine, weights, in, emit); });
}

// What becomes of a row's panel of sums:

inline F16 with_bias(const ProductWeights& weights, int64_t column, const float* sums, int64_t at) {
    const F16 sum = load(sums + at);
    return weights.bias ? add(sum, load(weights.bias + column + at)) : sum;
}

template <class E, F16 (*FUNCTION)(F16)>
inline void emit_activation(const ProductWeights& weights, int64_t column, const float* sums, E* out) {
    for (int64_t i = 0; i < kPanel; i += 16) store16(out + column + i, FUNCTION(with_bias(weights, column, sums, i)));
}

// The panel's first half are gates, its second half their ups.
template <class E>
inline void emit_swiglu(const ProductWeights& weights, int64_t column, const float* sums, E* out) {
    for (int64_t i = 0; i < kPanel / 2; i += 16) {
        const F16 gate = with_bias(weights, column, sums, i), up = with_bias(weights, column, sums, i + kPanel / 2);
        store16(out + column / 2 + i, mul(silu(gate), up));
    }
}

template <class E>
inline void emit_inner(int64_t kind, const ProductWeights& weights, int64_t column, const float* sums, E* out) {
    switch (kind) {
        case kGelu: return emit_activation<E, gelu>(weights, column, sums, out);
        case kGeluTanh: return emit_activation<E, gelu_tanh>(weights, column, sums, out);
        case kRelu: return emit_activation<E, relu>(weights, column, sums, out);
        default: return emit_swiglu<E>(weights, column, sums, out);
    }
}

inline void emit_store(const ProductWeights& weights, int64_t column, const float* sums, float* out, int64_t size) {
    for (int64_t i = 0; i < kPanel && column + i < size; i += 16) {
        const int64_t n = size - column - i < 16 ? size - column - i : 16;
        store_part(out + column + i, with_bias(weights, column, sums, i), n);
    }
}

inline void emit_residual(const ProductWeights& weights, int64_t column, const float* sums, float* x) {
    for (int64_t i = 0; i < kPanel; i += 16)
        store(x + column + i, add(load(x + column + i), with_bias(weights, column, sums, i)));
}

}  // namespace ISA
