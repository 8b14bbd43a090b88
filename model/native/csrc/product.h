// Rows times packed weights. Every output is one running sum over the inputs, first to last, whatever tile it falls
// in: tiles differ in how many rows they hold, never in the order of a sum.
#pragma once

namespace ISA {

template <class E>
constexpr int64_t kPair = 4 / static_cast<int64_t>(sizeof(E));  // inputs that one dot takes at a time

// Sums of codes are whole numbers: exact in any order.
template <class E>
struct SumOf {
    using Type = F16;
};
template <>
struct SumOf<uint8_t> {
    using Type = I16;
};
template <>
struct SumOf<int8_t> {
    using Type = I16;
};
template <class E>
using Sum = typename SumOf<E>::Type;

// sum[r][v] += rows[r] . columns[v] for one dot; the rows' inputs and the columns' weights of that dot.
template <int R, int V, class E>
[[gnu::always_inline]] inline void accumulate_dot(
    Sum<E> (&sum)[R][V], const E* const (&rows)[R], int64_t input, const E* const (&columns)[V], int64_t weight) {
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

inline void set_zero(F16& sum) { sum = zero(); }
inline void set_zero(I16& sum) { sum = fill_ints(0); }

template <int R, int V, class S>
[[gnu::always_inline]] inline void clear(S (&sum)[R][V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) set_zero(sum[r][v]);
}

inline void store_sum(float* out, F16 sum) { store(out, sum); }
inline void store_sum(float* out, I16 sum) { store_ints(out, sum); }

// A row's panel of integer sums, in place, to what they stand for. Not in the tile itself: gcc 12 would keep its sums
// in memory then.
inline void scale_sums(const ProductWeights& weights, int64_t column, const CodeScale& row, float* sums) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kPanel; i += 16) {
        const I16 dots =
            sub_product(load_ints(sums + i), load_ints(weights.code_sums + column + i), fill_ints(row.zero));
        store(sums + i, mul(to_float(dots), mul(load(weights.scales + column + i), fill(row.scale))));
    }
}

constexpr int64_t kChunk = 4;  // inputs are padded to whole chunks of dots

// Memory to fetch while a tile computes, so that neither waits for the other: per kChunk dots `lines` cache lines of
// the weights to come, and one run of pages while there are some.
struct Ahead {
    const char* from;
    int64_t lines;
    PageRuns pages;
};

template <int R, class E>
void tile_product(const E* const* inputs, const E* panel, int64_t steps, const Ahead& ahead, float* out) {
    constexpr int64_t step_size = kPanel * kPair<E>;
    const E* rows[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) rows[r] = inputs[r];
    PageRuns pages = ahead.pages;
    for (int64_t column = 0; column < kPanel; column += 16 * kTileVectors) {
        Sum<E> sum[R][kTileVectors];
        clear(sum);
        const E* weights = panel + column * kPair<E>;
        const char* fetch = ahead.from;
        for (int64_t input = 0; input < steps * kPair<E>; input += kChunk * kPair<E>, weights += kChunk * step_size) {
            for (int64_t line = 0; line < ahead.lines; ++line, fetch += 64) __builtin_prefetch(fetch, 0, 2);
            if (pages.left > 0) pages.fetch_next();
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
            for (int v = 0; v < kTileVectors; ++v) store_sum(out + r * kPanel + column + 16 * v, sum[r][v]);
    }
}

template <int R, class E>
inline void tile_of_height(int64_t height, const E* const* rows, const E* panel, int64_t steps, const Ahead& ahead, float* out) {
    if (height == R) return tile_product<R, E>(rows, panel, steps, ahead, out);
    if constexpr (R > 1) tile_of_height<R - 1, E>(height, rows, panel, steps, ahead, out);
}

// The rows a product reads: row r is input + index[r] * stride, or input + r * stride without an index. A product of
// int8 weights reads their codes instead, which have the same stride and scales beside them.
template <class E>
struct InputRows {
    const E* input;
    int64_t stride;
    const int32_t* index;
    int64_t count;
    const uint8_t* codes;
    const CodeScale* scales;

    int64_t at(int64_t r) const { return index ? index[r] : r; }
};

// Rows of the workspace, and their codes.
template <class E>
inline InputRows<E> rows_of(const StepContext& c, const E* input, int64_t stride, int64_t count) {
    return {input, stride, nullptr, count, c.space.codes, c.space.code_scales};
}

// Writes a row's codes if `consumer` reads codes.
template <class E>
inline void quantise(const StepContext& c, const ProductWeights& consumer, const InputRows<E>& in, int64_t row) {
    if (!consumer.scales) return;
    c.space.code_scales[row] = quantise_row(c.space.codes + row * in.stride, in.input + row * in.stride, in.stride);
}

// Of all rows, as a stage.
template <class E>
void quantise_all(const StepContext& c, const Team& team, const ProductWeights& consumer, const InputRows<E>& in) {
    if (!consumer.scales) return;
    team.share(in.count, [&](Range mine, int64_t) {
        for (int64_t r = mine.begin; r < mine.end; ++r) quantise(c, consumer, in, in.at(r));
    });
}

// Columns [begin, end) alone, whole panels.
template <class E>
inline ProductWeights some_columns(ProductWeights weights, int64_t begin, int64_t end) {
    const int64_t size = weights.scales ? 1 : static_cast<int64_t>(sizeof(E));
    weights.packed = static_cast<const char*>(weights.packed) + begin * weights.inputs * size;
    if (weights.bias) weights.bias += begin;
    if (weights.scales) weights.scales += begin, weights.code_sums += begin;
    weights.columns = end - begin;
    return weights;
}

inline int64_t num_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
inline int64_t num_units(const ProductWeights& weights, int64_t rows) {
    return weights.columns / kPanel * num_tiles(rows);
}

// Units [range) of a product, panel by panel and within one tile by tile. emit(row, column, sums[64]) takes each
// row's panel without its bias.
template <class E, class Emit>
void product_units(Range range, const ProductWeights& weights, const InputRows<E>& in, const PageRuns& pages,
                   const Emit& emit) {
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
        for (int64_t r = first; r < last; ++r) rows[r - first] = in.input + in.at(r) * in.stride;
        const E* packed = static_cast<const E*>(weights.packed) + panel * panel_size;
        const char* next = reinterpret_cast<const char*>(packed) + panel_bytes + tile * part;
        const Ahead ahead{next, lines, pages.part(unit, num_units(weights, in.count))};
        tile_of_height<kTileRows, E>(last - first, rows, packed, steps, ahead, sums);
        for (int64_t r = first; r < last; ++r) {
            float* mine = sums + (r - first) * kPanel;
            if constexpr (sizeof(E) == 1) scale_sums(weights, panel * kPanel, in.scales[in.at(r)], mine);
            emit(r, panel * kPanel, mine);
        }
    }
}

// The same in the weights' own type.
template <class E, class Emit>
void typed_units(Range range, const ProductWeights& weights, const InputRows<E>& in, const PageRuns& pages,
                 const Emit& emit) {
    if (!weights.scales) return product_units(range, weights, in, pages, emit);
    const InputRows<uint8_t> codes{in.codes, in.stride, in.index, in.count, in.codes, in.scales};
    product_units(range, weights, codes, pages, emit);
}

// The weights, as the product reads them.
template <class E>
inline Panels panels_of(const ProductWeights& weights) {
    const int64_t size = weights.scales ? 1 : static_cast<int64_t>(sizeof(E));
    return {static_cast<const char*>(weights.packed), kPanel * weights.inputs * size, weights.columns / kPanel};
}

// What threads fetch during a product, and what then, while they wait for each other.
struct Fetches {
    PageRuns pages;
    Panels upcoming;
};

template <class E, class Emit>
void product(const Team& team, const ProductWeights& weights, const InputRows<E>& in, const Fetches& fetches,
             const Emit& emit) {
    // By value: what is in one place comes over at once from the thread that wrote it.
    const auto units = [&weights, in, pages = fetches.pages, emit](Range mine, int64_t) {
        typed_units(mine, weights, in, pages, emit);
    };
    team.share(num_units(weights, in.count), units, fetches.upcoming);
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
    if (column + kPanel <= size) {
        for (int64_t i = 0; i < kPanel; i += 16) store(out + column + i, with_bias(weights, column, sums, i));
        return;
    }
    for (int64_t i = 0; column + i < size; i += 16) {
        const int64_t n = size - column - i < 16 ? size - column - i : 16;
        store_part(out + column + i, with_bias(weights, column, sums, i), n);
    }
}

inline void emit_residual(const ProductWeights& weights, int64_t column, const float* sums, float* x) {
    for (int64_t i = 0; i < kPanel; i += 16)
        store(x + column + i, add(load(x + column + i), with_bias(weights, column, sums, i)));
}

}  // namespace ISA
