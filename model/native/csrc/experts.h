// Mixture of experts: each row's top experts, products over the rows of each expert, and their sum in order of rank.
#pragma once

namespace ISA {

// The experts of a row by falling logit, the lower index first among equals, and the softmax over their logits.
inline void choose_experts(const float* logits, const LayerWeights& layer, int32_t* chosen, float* gates) {
    float total = 0.0f;
    for (int64_t rank = 0; rank < layer.experts_per_token; ++rank) {
        int64_t best = -1;
        for (int64_t e = 0; e < layer.num_experts; ++e) {
            bool taken = false;
            for (int64_t earlier = 0; earlier < rank; ++earlier) taken = taken || chosen[earlier] == e;
            if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
        }
        chosen[rank] = static_cast<int32_t>(best);
        float lane[16];
        store(lane, exp(fill(logits[best] - logits[chosen[0]])));
        gates[rank] = lane[0];
        total += gates[rank];
    }
    for (int64_t rank = 0; rank < layer.experts_per_token; ++rank) gates[rank] /= total;
}

// Groups the assignments by expert, rows in order: a counting sort. Not shared out: a few thousand integers at most.
template <class E>
void group_by_expert(const StepContext& c, const LayerWeights& layer, const InputRows<E>& in) {
    const Workspace& space = c.space;
    const int64_t choices = layer.experts_per_token, assignments = in.count * choices;
    int64_t* first = space.expert_first;  // while counting, shifted by one: first[e + 1] is where expert e goes on
    for (int64_t e = 0; e <= layer.num_experts + 1; ++e) first[e] = 0;
    for (int64_t i = 0; i < assignments; ++i) ++first[space.chosen[i] + 2];
    for (int64_t e = 0; e < layer.num_experts; ++e) first[e + 2] += first[e + 1];
    for (int64_t i = 0; i < assignments; ++i) {
        const int64_t place = first[space.chosen[i] + 1]++;
        space.members[place] = static_cast<int32_t>(in.at(i / choices));
        space.places[i] = static_cast<int32_t>(place);
    }
}

// Every expert's product over its own rows. `gather`: inputs are the members' rows, else the assignments' own.
template <class E, class Emit>
void expert_product(const StepContext& c, const Team& team, const LayerWeights& layer, const ProductWeights* weights,
                    const E* input, int64_t stride, bool gather, const Emit& emit) {
    const int64_t* first = c.space.expert_first;
    int64_t total = 0;
    for (int64_t e = 0; e < layer.num_experts; ++e) total += num_units(weights[e], first[e + 1] - first[e]);
    team.share(total, [&](Range mine, int64_t) {
        int64_t before = 0;
        for (int64_t e = 0; e < layer.num_experts; ++e) {
            const int64_t count = first[e + 1] - first[e], units = num_units(weights[e], count);
            const Range part{mine.begin > before ? mine.begin - before : 0,
                             mine.end - before < units ? mine.end - before : units};
            before += units;
            if (part.begin >= part.end) continue;
            const int64_t begin = gather ? 0 : first[e];
            const InputRows<E> in{input + begin * stride, stride, gather ? c.space.members + first[e] : nullptr, count,
                                  c.space.codes + begin * stride, c.space.code_scales + begin};
            typed_units(part, weights[e], in, PageRuns{}, [&](int64_t row, int64_t column, const float* sums) {
                emit(weights[e], first[e] + row, column, sums);
            });
        }
    });
}

// x += the outputs times their gates of the experts that input row r chose, first to last.
inline void combine_row(const StepContext& c, const LayerWeights& layer, int64_t r, float* x) {
    const int64_t choices = layer.experts_per_token, stride = round_up(c.model->hidden_size, kPanel);
    for (int64_t i = 0; i < stride; i += 16) {
        F16 sum = zero();
        for (int64_t choice = r * choices; choice < (r + 1) * choices; ++choice)
            sum = fma(load(c.space.expert_out + c.space.places[choice] * stride + i), fill(c.space.gates[choice]), sum);
        store(x + i, add(load(x + i), sum));
    }
}

template <class E>
void experts(const StepContext& c, const Team& team, const LayerWeights& layer, const InputRows<E>& in) {
    const ModelWeights& m = *c.model;
    const int64_t hidden = round_up(m.hidden_size, kPanel);
    product(team, layer.router, in, Fetches{}, [&](int64_t row, int64_t column, const float* sums) {
        emit_store(layer.router, column, sums, c.space.router_logits + row * layer.router.columns, layer.router.columns);
    });
    const int64_t choices = layer.experts_per_token;
    team.share(in.count, [&](Range mine, int64_t) {
        for (int64_t row = mine.begin; row < mine.end; ++row)
            choose_experts(c.space.router_logits + row * layer.router.columns, layer, c.space.chosen + row * choices,
                           c.space.gates + row * choices);
    });
    group_by_expert(c, layer, in);
    report_routing(c, layer);
    E* inner = reinterpret_cast<E*>(c.space.inner);
    expert_product(c, team, layer, layer.up, in.input, in.stride, true,
                   [&](const ProductWeights& weights, int64_t place, int64_t column, const float* sums) {
                       emit_inner(m.activation, weights, column, sums, inner + place * m.inner_size);
                   });
    const InputRows<E> assignments = rows_of<E>(c, inner, m.inner_size, c.space.expert_first[layer.num_experts]);
    quantise_all(c, team, *layer.down, assignments);
    expert_product(c, team, layer, layer.down, inner, m.inner_size, false,
                   [&](const ProductWeights& weights, int64_t place, int64_t column, const float* sums) {
                       emit_store(weights, column, sums, c.space.expert_out + place * hidden, hidden);
                   });
    team.share(in.count, [&](Range mine, int64_t) {
        for (int64_t r = mine.begin; r < mine.end; ++r) combine_row(c, layer, r, c.space.x + in.at(r) * hidden);
    });
}

}  // namespace ISA
