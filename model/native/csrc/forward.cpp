// A whole step with one instruction set: compiled once for each, ISA names the namespace.
#include "backend.h"

#if defined(USE_AVX512)
#include "simd_avx512.h"
#elif defined(USE_AVX2)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif
#include "elementwise.h"
#include "rows.h"
#include "ahead.h"
#include "product.h"
#include "cache.h"
#include "watch.h"
#include "attention.h"
#include "attention_int8.h"
#include "experts.h"
#include "peak.h"

namespace ISA {

// One step: a chain of stages, each shared out among the threads and done before the next begins.
template <class E>
struct Forward {
    const StepContext& c;
    const Team& team;
    const ModelWeights& m = *c.model;
    const int64_t hidden = round_up(m.hidden_size, kPanel);

    E* normed(int64_t row) const { return reinterpret_cast<E*>(c.space.normed) + row * hidden; }
    float* x(int64_t row) const { return c.space.x + row * hidden; }
    InputRows<E> rows(const E* input, int64_t stride, int64_t count) const { return rows_of<E>(c, input, stride, count); }

    template <class Function>
    void each(int64_t count, const Function& function) const {
        team.share(count, [&](Range mine, int64_t) {
            for (int64_t i = mine.begin; i < mine.end; ++i) function(i);
        });
    }

    void embed(int64_t row) const {
        const int64_t token = c.work->tokens[row], position = c.positions[row], size = m.hidden_size;
        for (int64_t i = 0; i < hidden; i += 16) store(x(row) + i, zero());
        add_row(x(row), static_cast<const E*>(m.embedding) + token * size, size);
        if (m.position_embedding) add_row(x(row), static_cast<const E*>(m.position_embedding) + position * size, size);
        if (m.position_table) add_row(x(row), m.position_table + position * size, size);
    }

    // The input of a sublayer, as its first product reads it. With post-norm the residual stream itself is normed, by
    // the norm of the sublayer before (none before the first).
    void prepare(int64_t row, const NormWeights* norm, const ProductWeights& consumer) const {
        normalise(row, norm, normed(row));
        quantise(c, consumer, rows(normed(0), hidden, c.work->num_rows), row);
    }
    void normalise(int64_t row, const NormWeights* norm, E* out) const {
        if (!norm) return copy_row(out, x(row), m.hidden_size);
        if (m.pre_norm) return norm_row(out, x(row), *norm);
        norm_row(x(row), x(row), *norm);
        copy_row(out, x(row), m.hidden_size);
    }

    // What a product fetches for a layer's attention: up and down of the layer before and qkv a third each.
    PageRuns pages(int64_t index, int64_t third) const {
        return index < m.num_layers ? pages_of_layer(c, index).part(third, 3) : PageRuns{};
    }

    // What the first product after a layer reads: the next layer's, or the unembedding.
    Panels behind(int64_t index) const {
        return panels_of<E>(index + 1 < m.num_layers ? m.layers[index + 1].qkv : m.unembedding);
    }

    // Queries of the `live` rows, keys and values of all.
    void project(const ProductWeights& qkv, const InputRows<E>& in, const InputRows<E>& live, const Fetches& fetches) const {
        const int64_t queries = live.index ? m.num_heads * m.head_dim / kPanel * kPanel : 0;
        const auto columns = [&](int64_t begin, int64_t end, const InputRows<E>& of) {
            const ProductWeights part = some_columns<E>(qkv, begin, end);
            product(team, part, of, fetches, [&](int64_t row, int64_t column, const float* sums) {
                emit_store(part, column, sums, c.space.qkv + of.at(row) * qkv.columns + begin, part.columns);
            });
        };
        columns(0, queries, live);
        columns(queries, qkv.columns, in);
    }

    // Adds to the `live` rows of the residual stream; keys and values are those of all rows.
    void attend(const LayerWeights& layer, int64_t index, const InputRows<E>& in, const InputRows<E>& live) const {
        const Panels out = panels_of<E>(layer.out);
        project(layer.qkv, in, live, {pages(index, 2), out});
        each(in.count, [&](int64_t row) { store_row<E>(c, index, row); });
        attention<E>(c, team, index, out);
        const auto* attended = reinterpret_cast<const E*>(c.space.attended);
        InputRows<E> heads = rows(attended, round_up(m.num_heads * m.head_dim, kPanel), live.count);
        heads.index = live.index;
        quantise_all(c, team, layer.out, heads);
        const Panels next = panels_of<E>(layer.num_experts ? layer.router : *layer.up);
        product(team, layer.out, heads, {{}, next}, [&](int64_t row, int64_t column, const float* sums) {
            emit_residual(layer.out, column, sums, x(live.at(row)));
        });
    }

    void feed_forward(const LayerWeights& layer, int64_t index, const InputRows<E>& in) const {
        if (layer.num_experts) return experts<E>(c, team, layer, in);
        E* inner = reinterpret_cast<E*>(c.space.inner);
        const Fetches of_up{pages(index + 1, 0), panels_of<E>(*layer.down)};
        const Fetches of_down{pages(index + 1, 1), behind(index)};
        product(team, *layer.up, in, of_up, [&](int64_t row, int64_t column, const float* sums) {
            emit_inner(m.activation, *layer.up, column, sums, inner + row * m.inner_size);
        });
        const InputRows<E> activations = rows(inner, m.inner_size, in.count);
        quantise_all(c, team, *layer.down, activations);
        product(team, *layer.down, activations, of_down, [&](int64_t row, int64_t column, const float* sums) {
            emit_residual(*layer.down, column, sums, x(in.at(row)));
        });
    }

    // Whether a row's hidden state, as far as it was computed, and its last keys and values are finite; hence are those
    // of all layers.
    bool is_finite(int64_t row) const {
        const int64_t columns = m.layers[m.num_layers - 1].qkv.columns, queries = m.num_heads * m.head_dim;
        return is_finite_row(x(row), m.hidden_size) &&
               is_finite_row(c.space.qkv + row * columns + queries, 2 * m.num_kv_heads * m.head_dim);
    }

    void unembed(const NormWeights* norm) const {
        const StepWork& work = *c.work;
        each(work.num_rows, [&](int64_t row) { work.is_finite[row] = is_finite(row); });
        // Not in place, even with post-norm: a row may be wanted twice.
        const InputRows<E> in = rows(normed(0), hidden, work.num_wanted);
        each(work.num_wanted, [&](int64_t i) {
            norm_row(normed(i), x(work.wanted[i]), *norm);
            quantise(c, m.unembedding, in, i);
        });
        product(team, m.unembedding, in, {{}, behind(-1)}, [&](int64_t row, int64_t column, const float* sums) {
            emit_store(m.unembedding, column, sums, work.logits + row * m.vocab_size, m.vocab_size);
        });
        // While they are in the cache.
        each(work.num_wanted, [&](int64_t i) {
            work.is_finite[work.num_rows + i] = is_finite_row(work.logits + i * m.vocab_size, m.vocab_size);
        });
    }

    void run() const {
        const int64_t count = c.work->num_rows;
        const InputRows<E> in = rows(normed(0), hidden, count);
        InputRows<E> live = rows(normed(0), hidden, c.num_live);
        live.index = c.live;
        const NormWeights* last = nullptr;  // of the sublayer before, with post-norm
        each(count, [&](int64_t row) { embed(row); });
        for (int64_t index = 0; index < m.num_layers; ++index) {
            const LayerWeights& layer = m.layers[index];
            const NormWeights* first = m.pre_norm ? &layer.attention_norm : last;
            const NormWeights* second = m.pre_norm ? &layer.feed_forward_norm : &layer.attention_norm;
            each(count, [&](int64_t row) { prepare(row, first, layer.qkv); });
            const InputRows<E>& rest = index + 1 < m.num_layers ? in : live;
            attend(layer, index, in, rest);
            each(rest.count, [&](int64_t r) { prepare(rest.at(r), second, *layer.up); });
            feed_forward(layer, index, rest);
            last = &layer.feed_forward_norm;
        }
        unembed(m.pre_norm ? &m.final_norm : last);
    }
};

static void run(const StepContext& context, const Team& team) {
    if (context.model->element == kBfloat16) return Forward<uint16_t>{context, team}.run();
    Forward<float>{context, team}.run();
}

static int64_t compute_dots(int64_t weight_bytes, int64_t repeats) {
    if (weight_bytes == 1) return peak_dots<uint8_t>(repeats);
    return weight_bytes == 2 ? peak_dots<uint16_t>(repeats) : peak_dots<float>(repeats);
}

}  // namespace ISA

#define BACKEND_NAME_(isa) backend_##isa
#define BACKEND_NAME(isa) BACKEND_NAME_(isa)
#define TEXT_(isa) #isa
#define TEXT(isa) TEXT_(isa)

const Backend* BACKEND_NAME(ISA)() {
    static const Backend backend = {TEXT(ISA), ISA::kTileRows, ISA::run, ISA::compute_dots};
    return &backend;
}
