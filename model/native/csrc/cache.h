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

// Keys and values of one kv head of one sequence.
struct HeadPages {
    const StepContext& c;
    char* head;  // of block 0
    int64_t block_bytes;
    const int32_t* blocks;

    template <class T>
    T* keys(int64_t key) const {
        return reinterpret_cast<T*>(head + blocks[key / kBlockSize] * block_bytes);
    }
    template <class T>
    T* values(int64_t key) const {
        return reinterpret_cast<T*>(keys<char>(key) + c.cache.part_bytes);
    }
};
inline HeadPages pages_of(const StepContext& c, int64_t layer, int64_t kv_head, const int32_t* blocks) {
    return {c, key_part<char>(c, layer, 0, kv_head), c.model->num_kv_heads * 2 * c.cache.part_bytes, blocks};
}

template <class E>
inline void store_key(E* part, int64_t slot, const E* key, int64_t head_dim) {
    E* to = part + slot * kPair<E>;
    int64_t d = 0;
    for (; d + kPair<E> <= head_dim; d += kPair<E>, to += kBlockSize * kPair<E>) __builtin_memcpy(to, key + d, 4);
    for (int64_t i = 0; d + i < head_dim; ++i) to[i] = key[d + i];
}
inline void store_value(uint16_t* part, int64_t slot, const uint16_t* value, int64_t head_dim, int64_t padded_head_dim) {
    uint16_t* pairs = part + slot / 2 * padded_head_dim * 2;
    for (int64_t d = 0; d < head_dim; d += 16)
        store_in_pairs(pairs + d * 2, value + d, head_dim - d < 16 ? head_dim - d : 16, slot % 2);
}
template <class E>
inline void store_value(E* part, int64_t slot, const E* value, int64_t head_dim, int64_t padded_head_dim) {
    E* row = part + slot / kPair<E> * padded_head_dim * kPair<E> + slot % kPair<E>;
    for (int64_t d = 0; d < head_dim; ++d) row[d * kPair<E>] = value[d];
}

constexpr int64_t kMaxHeadDim = 1024;

// Query or key head: normed and rotated.
inline void finish_head(float* head, const NormWeights& norm, const float* rotary, int64_t head_dim) {
    if (norm.weight) norm_row(head, head, norm);
    if (rotary) rotate_row(head, rotary, head_dim);
}

// Of a part of int8: behind its codes, one scale for each slot.
inline float* scales_of(const StepContext& c, uint8_t* part) {
    return reinterpret_cast<float*>(part + c.cache.padded_head_dim * kBlockSize);
}

constexpr int32_t kKeyZero = 128;  // keys are stored unsigned, as a dot takes one operand so

// A key or value head as codes -127..127, to nearest even. Returns their scale, which is not a number for what is not
// finite. `codes` [padded] are 0 behind the head.
inline float quantise_head(int8_t* codes, const float* head, const StepContext& c) {
    alignas(64) float padded[kMaxHeadDim];
    const int64_t size = c.model->head_dim, all = c.cache.padded_head_dim;
    for (int64_t i = all - 16; i < all; ++i) padded[i] = 0.0f;
    __builtin_memcpy(padded, head, static_cast<size_t>(size) * sizeof(float));
    const Extent extent = extent_of(padded, all);
    const float largest = extent.greatest > -extent.least ? extent.greatest : -extent.least;
    const F16 inverse = fill(largest > kLeastRange ? 127.0f / largest : 0.0f);
    for (int64_t i = 0; i < all; i += 16) store16(codes + i, round_even(mul(load(padded + i), inverse)));
    return extent.is_finite ? largest / 127.0f : __builtin_nanf("");
}

// One row's key and value of a kv head to their slot, as codes.
inline void store_codes(const StepContext& c, uint8_t* key_part, int64_t slot, const float* key, const float* value) {
    const int64_t dim = c.model->head_dim;
    int8_t codes[kMaxHeadDim];
    uint8_t* value_part = key_part + c.cache.part_bytes;
    scales_of(c, key_part)[slot] = quantise_head(codes, key, c);
    for (int64_t d = 0; d < dim; ++d) codes[d] = static_cast<int8_t>(codes[d] ^ kKeyZero);  // adds it to a byte
    store_key(key_part, slot, reinterpret_cast<const uint8_t*>(codes), dim);
    scales_of(c, value_part)[slot] = quantise_head(codes, value, c);
    store_value(value_part, slot, reinterpret_cast<const uint8_t*>(codes), dim, c.cache.padded_head_dim);
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
    for (int64_t h = 0; h < m.num_heads; ++h) {
        finish_head(heads + h * dim, weights.query_norm, rotary, dim);
        copy_row(query + h * padded, heads + h * dim, dim);
    }
    float* keys = heads + m.num_heads * dim;
    const float* values = keys + m.num_kv_heads * dim;
    E rounded[kMaxHeadDim];
    for (int64_t h = 0; h < m.num_kv_heads; ++h) {
        finish_head(keys + h * dim, weights.key_norm, rotary, dim);
        if (m.int8_cache) {
            store_codes(c, key_part<uint8_t>(c, layer, block, h), slot, keys + h * dim, values + h * dim);
            continue;
        }
        copy_row(rounded, keys + h * dim, dim);
        store_key(key_part<E>(c, layer, block, h), slot, rounded, dim);
        copy_row(rounded, values + h * dim, dim);
        store_value(value_part<E>(c, layer, block, h), slot, rounded, dim, padded);
    }
}

}  // namespace ISA
