// Pages that the next attention reads, fetched while products compute. Attention alone would wait for memory; products
// whose weights lie in a cache leave it idle.
#pragma once

namespace ISA {

// `left` runs of a layer's pages, from `offset` bytes into a block on. The pages of a block and layer lie together.
struct PageRuns {
    static constexpr int64_t kRun = 8 * 64;  // bytes
    const char* layer;
    const int32_t* block;
    int64_t block_bytes, offset, left;

    [[gnu::always_inline]] inline void fetch_next() {
        const char* run = layer + *block * block_bytes + offset;
#pragma GCC unroll 8
        for (int64_t byte = 0; byte < kRun; byte += 64) __builtin_prefetch(run + byte, 0, 2);
        offset += kRun;
        --left;
        if (offset < block_bytes) return;
        offset = 0;
        ++block;
    }

    // The part of `all` parts with this number, of runs that begin with a block.
    PageRuns part(int64_t number, int64_t all) const {
        if (!left) return *this;
        const int64_t of_block = (block_bytes + kRun - 1) / kRun, from = offset / kRun;
        const int64_t first = left * number / all, last = left * (number + 1) / all;
        return {layer, block + (from + first) / of_block, block_bytes, (from + first) % of_block * kRun, last - first};
    }
};

// All of a layer that a step's attention reads and earlier steps have written, as far as c.past says.
inline PageRuns pages_of_layer(const StepContext& c, int64_t layer) {
    const int64_t block_bytes = c.model->num_kv_heads * 2 * c.cache.part_bytes;
    const int64_t of_block = (block_bytes + PageRuns::kRun - 1) / PageRuns::kRun;
    return {c.cache.data + layer * c.cache.num_blocks * block_bytes, c.past, block_bytes, 0, c.num_past * of_block};
}

}  // namespace ISA
