// What a step tells of itself when it is asked to. It reads what the step has made, and changes nothing of it.
#pragma once

namespace ISA {

constexpr float kHidden = -__builtin_inff();  // the score of a key that a row may not see

// A row's weights over its keys, all of them from the oldest on: [position + 1] to `out`, in full float32 where the step
// itself goes on with weights in element type. `scores` [end - first_key] start at `first_key`, whole blocks; no older
// key was looked at.
inline void report_attention(const float* scores, int64_t first_key, int64_t position, float* out) {
    const int64_t count = position + 1 - first_key, whole = round_up(count, 16);
    F16 highest = fill(kHidden), sum = zero();
    for (int64_t i = 0; i < whole; i += 16) highest = max(highest, load(scores + i));
    const F16 maximum = fill(max_lanes(highest));
    for (int64_t i = 0; i < whole; i += 16) sum = add(sum, exp(sub(load(scores + i), maximum)));
    const F16 factor = fill(1.0f / sum_lanes(sum));
    for (int64_t i = 0; i < first_key; ++i) out[i] = 0.0f;
    for (int64_t i = 0; i < count; i += 16) {
        const int64_t left = count - i;
        store_part(out + first_key + i, mul(exp(sub(load(scores + i), maximum)), factor), left < 16 ? left : 16);
    }
}

// The experts every row was sent to, and their gates.
inline void report_routing(const StepContext& c, const LayerWeights& layer) {
    const StepWork& work = *c.work;
    if (!work.chosen) return;
    const int64_t count = work.num_rows * layer.experts_per_token, first = (&layer - c.model->layers) * count;
    for (int64_t i = 0; i < count; ++i) {
        work.chosen[first + i] = c.space.chosen[i];
        work.gates[first + i] = c.space.gates[i];
    }
}

}  // namespace ISA
