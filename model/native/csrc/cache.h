// Keys and values into the pages, and where they lie there: see CachePages.
#pragma once

namespace ISA {

template <class E>
inline E* key_part(const StepContext& c, int64_t layer, int32_t block, int64_t kv_head) {
    const int64_t page = (layer * c.cache.num_blocks + block) * c.model->num_kv_heads + kv_head;
    return reinterpret_cast<E*>(c.cache.data + page * 2 * c.cache.part_bytes);
}
template <class E>
inline E* value_part(const StepContext& c, int64_t layer, int32_t block, int64_t kv_head) {
    return key_part<E>(c, layer, block, kv_head) + c.cache.part_bytes / static_cast<int64_t>(sizeof(E));
}

template <class E>
inline void store_key(E* part, int64_t slot, const E* key, int64_t head_dim) {
    for (int64_t d = 0; d < head_dim; ++d)
        part[d / kPair<E> * kBlockSize * kPair<E> + slot * kPair<E> + d % kPair<E>] = key[d];
}
template <class E>
inline void store_value(E* part, int64_t slot, const E* value, int64_t head_dim, int64_t padded_head_dim) {
    E* row = part + slot / kPair<E> * padded_head_dim * kPair<E> + slot % kPair<E>;
    for (int64_t d = 0; d < head_dim; ++d) row[d * kPair<E>] = value[d];
}

constexpr int64_t kMaxHeadDim = 1024;

// Query or key head: normed, rotated and rounded.
template <class E>
inline void finish_head(E* out, float* head, const NormWeights& norm, const float* rotary, int64_t head_dim) {
    if (norm.weight) norm_row(head, head, norm);
    if (rotary) rotate_row(head, rotary, head_dim);
    copy_row(out, head, head_dim);
}

inline const PlacedSpan& span_of_row(const StepContext& c, int64_t row) {
    int64_t low = 0, high = c.work->num_spans - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (c.spans[middle].first_row <= row) low = middle; else high = middle - 1;
    }
    return c.spans[low];
}

// One row's queries to the workspace, its keys and values to their slot.
template <class E>
void store_row(const StepContext& c, int64_t layer, int64_t row) {
    const ModelWeights& m = *c.model;
    const LayerWeights& weights = m.layers[layer];
    const int64_t dim = m.head_dim, padded = c.cache.padded_head_dim, position = c.positions[row];
    const PlacedSpan& span = span_of_row(c, row);
    const int32_t block = span.blocks[position / kBlockSize];
    const int64_t slot = position % kBlockSize;
    const float* rotary = m.rotary_table ? m.rotary_table + position * dim : nullptr;
    float* heads = c.space.qkv + row * weights.qkv.columns;
    E* query = reinterpret_cast<E*>(c.space.query) + row * m.num_heads * padded;
    for (int64_t h = 0; h < m.num_heads; ++h) finish_head(query + h * padded, heads + h * dim, weights.query_norm, rotary, dim);
    float* keys = heads + m.num_heads * dim;
    const float* values = keys + m.num_kv_heads * dim;
    E rounded[kMaxHeadDim];
    for (int64_t h = 0; h < m.num_kv_heads; ++h) {
        finish_head(rounded, keys + h * dim, weights.key_norm, rotary, dim);
        store_key(key_part<E>(c, layer, block, h), slot, rounded, dim);
        copy_row(rounded, values + h * dim, dim);
        store_value(value_part<E>(c, layer, block, h), slot, rounded, dim, padded);
    }
}

}  // namespace ISA
